package entrustgateway_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// config makes the settings for a simulator.
func config(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses, change ...func(settings map[string]any)) issuer.Config {
	t.Helper()
	cert, key := sim.ClientCertificate()
	settings := map[string]any{
		"base_url": at.URL(casimulator.EntrustGateway), "ca_file": sim.CAFile(), "client_cert_file": cert, "client_key_file": key,
		"ca_id": sim.Credentials().EntrustGatewayCA, "profile_id": sim.Credentials().EntrustGatewayProfile,
		"requests_per_second": 1000, "burst": 1000, "max_concurrent_requests": 100, "timeout_seconds": 10, "lookup_settle_seconds": 1,
	}
	for _, c := range change {
		c(settings)
	}
	raw, err := json.Marshal(settings)
	require.NoError(t, err)
	return issuer.Config{Settings: raw}
}

func open(t testing.TB, c issuer.Config) *entrustgateway.Issuer {
	t.Helper()
	i, err := entrustgateway.Type().New(context.WithoutCancel(t.Context()), c, issuer.Deps{})
	require.NoError(t, err)
	out, ok := i.(*entrustgateway.Issuer)
	require.True(t, ok)
	return out
}

// connect starts a simulator and makes an issuer for it.
func connect(t testing.TB, s casimulator.Scenario, change ...func(settings map[string]any)) (*entrustgateway.Issuer, *casimulator.Simulator) {
	t.Helper()
	sim, at := faulttest.Start(t, s)
	return open(t, config(t, sim, at, change...)), sim
}

func conforms(t *testing.T, s casimulator.Scenario, change ...func(settings map[string]any)) {
	t.Helper()
	issuertest.Run(t, issuertest.Suite{
		Type:          entrustgateway.Type(),
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384, certcheck.RSA2048},
		NoIdempotency: true,
		MaxPolls:      200,
		Settle:        func(testing.TB) { <-time.After(5 * time.Millisecond) },
		New: func(t testing.TB) issuer.Issuer {
			t.Helper()
			i, sim := connect(t, s, change...)
			t.Cleanup(func() { require.Empty(t, sim.Violations()) })
			return i
		},
		Wrong: func(t testing.TB) map[string]issuer.Issuer {
			t.Helper()
			sim, at := faulttest.Start(t, casimulator.Scenario{})
			foreign, _ := faulttest.Start(t, casimulator.Scenario{})
			set := func(field string, value any) issuer.Issuer {
				return open(t, config(t, sim, at, func(s map[string]any) { s[field] = value }))
			}
			cert, key := foreign.ClientCertificate()
			return map[string]issuer.Issuer{
				"base_url": set("base_url", at.URL("nowhere")), "ca_file": set("ca_file", foreign.CAFile()),
				"ca_id": set("ca_id", "other~ca"), "profile_id": set("profile_id", "other"),
				"client_cert_file": open(t, config(t, sim, at, func(s map[string]any) { s["client_cert_file"], s["client_key_file"] = cert, key })),
			}
		},
	})
}

func TestTheGatewayConforms(t *testing.T) {
	t.Parallel()
	conforms(t, casimulator.Scenario{})
}

func TestAGatewayOfOtherHabitsConforms(t *testing.T) {
	t.Parallel()
	conforms(t, casimulator.Scenario{}, func(s map[string]any) {
		s["reference_property"], s["validity_form"], s["ca_client_id"] = "tracking.trackingInfo", "duration", "client-7"
		s["base_url"], s["subject_variables"] = s["base_url"].(string)+"/v1/", map[string]string{"o": "Example"} //nolint:forcetypeassert // it is set above
	})
}

func TestTheGatewayWithstandsItsFaults(t *testing.T) {
	t.Parallel()
	faulttest.Run(t, faulttest.CA{
		Name: casimulator.EntrustGateway,
		New: func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses) issuer.Issuer {
			t.Helper()
			return open(t, config(t, sim, at, func(s map[string]any) { s["timeout_seconds"] = 1 }))
		},
		Before:              []string{"profiles"},
		Poll:                []string{"status", "chain"},
		List:                "changes",
		Lifetime:            30 * 24 * time.Hour,
		Ahead:               faulttest.Issued,
		Behind:              faulttest.Issued,
		MissingIntermediate: faulttest.Issued, // the CA's own certificate stands in
		Forgotten:           faulttest.Issued, // the feed of events shows it all the same
		Secrets:             func(casimulator.CredentialSet) []string { return []string{"PRIVATE KEY"} },
	})
}

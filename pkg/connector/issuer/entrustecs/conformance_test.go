package entrustecs_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/secretbox"
)

// lifetime: Entrust counts in days.
const lifetime = 30 * 24 * time.Hour

// config makes the settings for a simulator.
func config(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses, change ...func(settings map[string]any)) issuer.Config {
	t.Helper()
	settings := map[string]any{
		"base_url": at.URL(casimulator.EntrustECS) + "/enterprise/v2", "ca_file": sim.CAFile(), "username": sim.Credentials().EntrustECSUser,
		"cert_type": "PRIVATE_SSL", "requester_name": "Ada Example", "requester_email": "ada@example.com", "requester_phone": "555 0100",
		"requests_per_second": 1000, "burst": 1000, "max_concurrent_requests": 100, "timeout_seconds": 10, "lookup_settle_seconds": 1,
	}
	for _, c := range change {
		c(settings)
	}
	raw, err := json.Marshal(settings)
	require.NoError(t, err)
	return issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{"api_key": secretbox.NewSecret(sim.Credentials().EntrustECSKey)}}
}

func open(t testing.TB, c issuer.Config) *entrustecs.Issuer { return openAt(t, c, issuer.Deps{}) }

func openAt(t testing.TB, c issuer.Config, d issuer.Deps) *entrustecs.Issuer {
	t.Helper()
	i, err := entrustecs.Type().New(context.WithoutCancel(t.Context()), c, d)
	require.NoError(t, err)
	out, ok := i.(*entrustecs.Issuer)
	require.True(t, ok)
	return out
}

// connect starts a simulator and makes an issuer for it.
func connect(t testing.TB, s casimulator.Scenario, change ...func(settings map[string]any)) (*entrustecs.Issuer, *casimulator.Simulator) {
	t.Helper()
	sim, at := faulttest.Start(t, s)
	return open(t, config(t, sim, at, change...)), sim
}

func conforms(t *testing.T, s casimulator.Scenario, change ...func(settings map[string]any)) {
	t.Helper()
	connected := func(t testing.TB, change ...func(settings map[string]any)) issuer.Issuer {
		t.Helper()
		i, sim := connect(t, s, change...)
		t.Cleanup(func() { require.Empty(t, sim.Violations()) })
		return i
	}
	issuertest.Run(t, issuertest.Suite{
		Type:          entrustecs.Type(),
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384, certcheck.RSA2048},
		DNSOnly:       true,
		Lifetime:      lifetime,
		NoIdempotency: true,
		MaxPolls:      200,
		Settle:        func(testing.TB) { <-time.After(5 * time.Millisecond) },
		New:           func(t testing.TB) issuer.Issuer { t.Helper(); return connected(t, change...) },
		Hold: func(t testing.TB) issuer.Issuer {
			t.Helper()
			i, _ := connect(t, s, append(change, func(s map[string]any) { s["queue_for_approval"] = true })...)
			return i
		},
		Wrong: func(t testing.TB) map[string]issuer.Issuer {
			t.Helper()
			sim, at := faulttest.Start(t, casimulator.Scenario{})
			foreign, _ := faulttest.Start(t, casimulator.Scenario{})
			set := func(field string, value any) issuer.Issuer {
				return open(t, config(t, sim, at, func(s map[string]any) { s[field] = value }))
			}
			key := config(t, sim, at)
			key.Secrets["api_key"] = secretbox.NewSecret("another key")
			return map[string]issuer.Issuer{
				"base_url": set("base_url", at.URL("nowhere")), "ca_file": set("ca_file", foreign.CAFile()), "api_key": open(t, key),
				"client_id": set("client_id", 3), "organization": set("organization", "Somebody Else"),
			}
		},
	})
}

func TestEntrustConforms(t *testing.T) {
	t.Parallel()
	conforms(t, casimulator.Scenario{})
}

func TestAnAccountWhoseOrdersWaitConforms(t *testing.T) {
	t.Parallel()
	conforms(t, casimulator.Scenario{Latency: 50 * time.Millisecond}, func(s map[string]any) {
		s["organization"], s["ct_log"] = "Example Subsidiary Ltd", false
	})
}

func TestEntrustWithstandsItsFaults(t *testing.T) {
	t.Parallel()
	faulttest.Run(t, faulttest.CA{
		Name: casimulator.EntrustECS,
		New: func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses) issuer.Issuer {
			t.Helper()
			return open(t, config(t, sim, at, func(s map[string]any) { s["timeout_seconds"] = 1 }))
		},
		Poll:     []string{"status"},
		List:     "list",
		Lifetime: lifetime,
		Ahead:    faulttest.Mismatch, // the certificate begins when Entrust says
		Behind:   faulttest.Issued,
		Secrets: func(c casimulator.CredentialSet) []string {
			return []string{c.EntrustECSKey, base64.StdEncoding.EncodeToString([]byte(c.EntrustECSUser + ":" + c.EntrustECSKey))}
		},
	})
}

package globalsign_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/secretbox"
)

// config makes the settings for a simulator.
func config(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses, change ...func(settings map[string]any)) issuer.Config {
	t.Helper()
	cert, key := sim.ClientCertificate()
	settings := map[string]any{
		"base_url": at.URL(casimulator.GlobalSign) + "/v2", "ca_file": sim.CAFile(), "client_cert_file": cert, "client_key_file": key,
		"requests_per_second": 1000, "burst": 1000, "max_concurrent_requests": 100, "timeout_seconds": 10, "lookup_settle_seconds": 1,
	}
	for _, c := range change {
		c(settings)
	}
	raw, err := json.Marshal(settings)
	require.NoError(t, err)
	return issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{
		"api_key": secretbox.NewSecret(sim.Credentials().GlobalSignAPIKey), "api_secret": secretbox.NewSecret(sim.Credentials().GlobalSignAPISecret),
	}}
}

func open(t testing.TB, c issuer.Config, d issuer.Deps) *globalsign.Issuer {
	t.Helper()
	i, err := globalsign.Type().New(context.WithoutCancel(t.Context()), c, d)
	require.NoError(t, err)
	out, ok := i.(*globalsign.Issuer)
	require.True(t, ok)
	return out
}

// connect starts a simulator and makes an issuer for it.
func connect(t testing.TB, s casimulator.Scenario) (*globalsign.Issuer, *casimulator.Simulator) {
	t.Helper()
	sim, at := faulttest.Start(t, s)
	return open(t, config(t, sim, at), issuer.Deps{}), sim
}

func TestGlobalSignConforms(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type:          globalsign.Type(),
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384},
		NoIdempotency: true,
		New: func(t testing.TB) issuer.Issuer {
			t.Helper()
			i, sim := connect(t, casimulator.Scenario{})
			t.Cleanup(func() { require.Empty(t, sim.Violations()) })
			return i
		},
		Wrong: func(t testing.TB) map[string]issuer.Issuer {
			t.Helper()
			sim, at := faulttest.Start(t, casimulator.Scenario{})
			key := config(t, sim, at)
			key.Secrets["api_key"] = secretbox.NewSecret("fedcba9876543210")
			address := config(t, sim, at, func(s map[string]any) { s["base_url"] = at.URL("nowhere") })
			foreign, foreignAt := faulttest.Start(t, casimulator.Scenario{})
			trust := config(t, sim, at, func(s map[string]any) { s["ca_file"] = foreign.CAFile() })
			cert, certKey := foreign.ClientCertificate()
			client := config(t, sim, at, func(s map[string]any) { s["client_cert_file"], s["client_key_file"] = cert, certKey })
			_ = foreignAt
			return map[string]issuer.Issuer{
				"api_key": open(t, key, issuer.Deps{}), "base_url": open(t, address, issuer.Deps{}), "ca_file": open(t, trust, issuer.Deps{}),
				"client_cert_file": open(t, client, issuer.Deps{}),
			}
		},
	})
}

func TestAnAccountThatTakesBareKeysConforms(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type:          globalsign.Type(),
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256},
		NoIdempotency: true,
		New: func(t testing.TB) issuer.Issuer {
			t.Helper()
			i, sim := connect(t, casimulator.Scenario{GlobalSign: casimulator.GlobalSignAccount{
				KeyFormat: "PKCS8", CommonName: casimulator.PresenceRequired,
			}})
			t.Cleanup(func() { require.Empty(t, sim.Violations()) })
			return i
		},
	})
}

func TestGlobalSignWithstandsItsFaults(t *testing.T) {
	t.Parallel()
	faulttest.Run(t, faulttest.CA{
		Name: casimulator.GlobalSign,
		New: func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses) issuer.Issuer {
			t.Helper()
			return open(t, config(t, sim, at, func(s map[string]any) { s["timeout_seconds"] = 1 }), issuer.Deps{})
		},
		Before:      []string{"login", "profiles"},
		Poll:        []string{"status", "chain"},
		List:        "list",
		Ahead:       faulttest.Refused, // the policy bounds when a certificate may begin
		Behind:      faulttest.Refused,
		WrongSerial: faulttest.Rejected, // it is what the certificate was asked for by
		Secrets: func(c casimulator.CredentialSet) []string {
			return []string{c.GlobalSignAPIKey, c.GlobalSignAPISecret, "eyJ"} // tokens begin so
		},
	})
}

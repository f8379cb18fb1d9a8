package digicert_test

import (
	"testing"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

func withTimeout(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses, timeout int) issuer.Issuer {
	return (&ca{sim: sim, at: at}).issuer(t, func(s map[string]any) {
		s["timeout_seconds"], s["lookup_settle_seconds"], s["requests_per_second"], s["burst"] = timeout, 1, 500, 500
	})
}

func TestOutcomeOfCallsUnderFaults(t *testing.T) {
	t.Parallel()
	faulttest.RunCalls(t, faulttest.Calls{CA: casimulator.DigiCert, Lifetime: lifetime, New: withTimeout})
}

func TestOrdersUnderFaults(t *testing.T) {
	t.Parallel()
	faulttest.Run(t, faulttest.CA{
		Name: casimulator.DigiCert, Lifetime: lifetime, Poll: []string{"status", "collect"}, List: "list",
		New: func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses) issuer.Issuer {
			return withTimeout(t, sim, at, 1)
		},
		Secrets: func(known casimulator.CredentialSet) []string { return []string{known.DigiCertAPIKey} },
		Ahead:   faulttest.Mismatch, Behind: faulttest.Issued, Forgotten: faulttest.Rejected,
	})
}

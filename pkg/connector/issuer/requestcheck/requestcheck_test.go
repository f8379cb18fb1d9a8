package requestcheck_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/requestcheck"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func TestAGoodOrderPasses(t *testing.T) {
	t.Parallel()
	require.NoError(t, requestcheck.Check(order(t)))
}

func TestWhatNoCATakesIsRefused(t *testing.T) {
	t.Parallel()
	for reason, spoil := range map[string]func(*issuer.SubmitRequest){
		"REQUEST_INCOMPLETE": func(r *issuer.SubmitRequest) { r.CSR = nil },
		"CSR_REFUSED":        func(r *issuer.SubmitRequest) { forged := *r.CSR; forged.Signature = []byte{1}; r.CSR = &forged },
		"NAMES_REFUSED":      func(r *issuer.SubmitRequest) { r.Names.DNSNames = []string{"WWW.example.com"} },
		"KEY_USAGE_REFUSED":  func(r *issuer.SubmitRequest) { r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} },
		"KEY_REFUSED":        func(r *issuer.SubmitRequest) { other := *r.CSR; other.PublicKey = nil; r.CSR = &other },
	} {
		r := order(t)
		spoil(&r)
		refused, ok := issuer.AsPermanent(requestcheck.Check(r))
		require.True(t, ok, reason)
		require.Equal(t, reason, refused.Reason)
	}
	noID := order(t)
	noID.OrderID = ""
	require.Error(t, requestcheck.Check(noID))
	ca := order(t)
	ca.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign
	require.Error(t, requestcheck.Check(ca))
	noNames := order(t)
	noNames.Names = certcheck.Names{}
	require.Error(t, requestcheck.Check(noNames))
}

func TestTheEndIsTheEarlierOfLifetimeAndBound(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	r := issuer.SubmitRequest{Lifetime: time.Hour}
	end, err := requestcheck.End(r, now)
	require.NoError(t, err)
	require.Equal(t, now.Add(time.Hour).Truncate(time.Second), end)
	r.RequestedAt = now.Add(-30 * time.Minute)
	end, err = requestcheck.End(r, now)
	require.NoError(t, err)
	require.Equal(t, now.Add(30*time.Minute).Truncate(time.Second), end)
	r.NotAfter = now.Add(time.Minute)
	end, err = requestcheck.End(r, now)
	require.NoError(t, err)
	require.Equal(t, now.Add(time.Minute).Truncate(time.Second), end)
	r.NotAfter = now
	_, err = requestcheck.End(r, now)
	require.Error(t, err)
	_, err = requestcheck.End(issuer.SubmitRequest{}, now)
	require.Error(t, err)
}

func order(t *testing.T) issuer.SubmitRequest {
	t.Helper()
	return issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "www.example.com", "example.com"))
}

package entrustecs

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func newOrder(t *testing.T, names ...string) issuer.SubmitRequest {
	t.Helper()
	r := issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, names...))
	r.Lifetime = 30 * 24 * time.Hour
	return r
}

func TestTheLastDayIsOverBeforeTheEnd(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for end, want := range map[string]string{
		"2026-05-30T12:00:00Z": "2026-05-29", "2026-05-30T04:59:59Z": "2026-05-28", "2026-05-30T05:00:00Z": "2026-05-29", "2026-03-04T00:00:00Z": "2026-03-02",
	} {
		at, err := time.Parse(time.RFC3339, end)
		require.NoError(t, err)
		got, err := expiryDate(at, now)
		require.NoError(t, err)
		require.Equal(t, want, got, end)
		day, err := time.ParseInLocation(time.DateOnly, got, time.FixedZone("EST", -5*3600))
		require.NoError(t, err)
		require.False(t, day.AddDate(0, 0, 1).After(at), "the whole day is before the end")
	}
	for _, end := range []time.Duration{time.Hour, 24 * time.Hour} {
		_, err := expiryDate(now.Add(end), now)
		refused, ok := issuer.AsPermanent(err)
		require.True(t, ok)
		require.Equal(t, "LIFETIME_NOT_SUPPORTED", refused.Reason)
	}
}

func TestEveryStatusHasItsMeaning(t *testing.T) {
	t.Parallel()
	i, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	sub, err := i.Submit(t.Context(), newOrder(t, "www.example.com"))
	require.NoError(t, err)
	for status, want := range map[string]issuer.State{
		"ACTIVE": issuer.Issued, "READY": issuer.Issued, "active": issuer.Issued, "REISSUED": issuer.Issued, "REISSUING": issuer.Issued,
		"RENEWED": issuer.Issued, "RENEWING": issuer.Issued,
		"PENDING": issuer.Pending, "PENDING_QUORUM": issuer.Pending, "APPROVED": issuer.Pending, "NA": issuer.Pending, "SUSPENDED": issuer.Pending,
		"OF_TOMORROW": issuer.Pending, "": issuer.Pending,
		"DECLINED": issuer.Rejected, "FAILED": issuer.Rejected, "REVOKED": issuer.Rejected, "DEACTIVATED": issuer.Rejected, "EXPIRED": issuer.Rejected,
	} {
		got, err := submission(issuer.Ref{refTracking: "7"}, certificate{Status: status, TrackingID: 7, EndEntityCert: string(sub.CertificatePEM)})
		require.NoError(t, err)
		require.Equal(t, want, got.State, status)
		if want != issuer.Issued {
			require.NotEmpty(t, got.Detail)
		}
	}
	got, err := submission(issuer.Ref{}, certificate{Status: "READY"})
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, got.State, "without a certificate it is none")
}

func TestAReissueThatKeepsItsNumberIsNotTheOldCertificate(t *testing.T) {
	t.Parallel()
	old, next := newOrder(t, "www.example.com"), newOrder(t, "www.example.com")
	i, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	sub, err := i.Submit(t.Context(), old)
	require.NoError(t, err)
	c := certificate{Status: "REISSUING", TrackingID: 7, EndEntityCert: string(sub.CertificatePEM)}
	before := serialOf(c)
	require.NotEmpty(t, before)
	for _, ref := range []issuer.Ref{
		{refTracking: "7", refReplaces: "7", refOld: before, refKey: caclient.KeyID(next.CSR.PublicKey)},
		{refTracking: "7", refReplaces: "7", refOld: before, refKey: caclient.KeyID(old.CSR.PublicKey)}, // the CSR is used again
		{refTracking: "7", refReplaces: "7", refKey: caclient.KeyID(next.CSR.PublicKey)},                // from before the serial number was kept
	} {
		got, err := submission(ref, c)
		require.NoError(t, err)
		require.Equal(t, issuer.Pending, got.State)
		require.Empty(t, got.Ref[refSerial], "it is the old one's")
	}
	got, err := submission(issuer.Ref{refTracking: "7", refReplaces: "7", refOld: "ab", refKey: caclient.KeyID(old.CSR.PublicKey)}, c)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, got.State)
	find := issuer.FindRequest{OrderID: "ord-1", PublicKey: old.CSR.PublicKey, Previous: issuer.Ref{refTracking: "7", refSerial: before}}
	require.False(t, isOrder(c, find), "the certificate before is not the new one, though the key is the same")
	find.Previous = nil
	require.True(t, isOrder(c, find))
}

func TestWhatCannotBeReadIsAskedForAgainAndNoChainIsLost(t *testing.T) {
	t.Parallel()
	r := newOrder(t, "www.example.com")
	i, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	leaf, above := string(sub.CertificatePEM), string(sub.ChainPEM)
	require.NotEmpty(t, above)
	block, _ := pem.Decode(sub.ChainPEM)
	bare := base64.StdEncoding.EncodeToString(block.Bytes)
	ref := issuer.Ref{refTracking: "7", refKey: caclient.KeyID(r.CSR.PublicKey)}
	for _, c := range []certificate{
		{EndEntityCert: "-----BEGIN CERTIFICATE-----\nrubbish"}, {EndEntityCert: "AAEC"}, {EndEntityCert: leaf, ChainCerts: []string{above, "AAEC"}},
		{EndEntityCert: leaf, ChainCerts: []string{"-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"}},
	} {
		c.Status = "ACTIVE"
		_, err := submission(ref, c)
		require.Error(t, err)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	}
	got, err := submission(ref, certificate{Status: "ACTIVE", EndEntityCert: leaf, ChainCerts: []string{leaf, bare}})
	require.NoError(t, err)
	require.NotEmpty(t, got.ChainPEM, "beside one that has its armour")
}

func TestARequestSaysWhatEntrustWants(t *testing.T) {
	t.Parallel()
	r := newOrder(t, "www.example.com", "example.com")
	log := false
	s := Settings{
		CertType: "UC_SSL", ClientID: 1, Organization: "Example", RequesterName: "Ada", RequesterEmail: "ada@example.com", RequesterPhone: "1", CTLog: &log,
	}
	got, err := newRequest(r, s, time.Now())
	require.NoError(t, err)
	text, err := json.Marshal(got)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(text, &fields))
	require.Equal(t, "ord-1", fields["tracking"].(map[string]any)["trackingInfo"]) //nolint:forcetypeassert // it is a test
	require.Equal(t, []any{"www.example.com", "example.com"}, fields["subjectAltName"])
	require.Equal(t, "SERVER_AUTH", fields["eku"])
	require.Equal(t, false, fields["queueForApproval"])
	require.Equal(t, false, fields["ctLog"])
	require.NotContains(t, fields, "cn", "it is for S/MIME")
}

func TestWhatEntrustDoesNotCertifyIsRefused(t *testing.T) {
	t.Parallel()
	raw := certcheck.RawNames{DNSNames: []string{"www.example.com"}}
	for reason, change := range map[string]func(r *issuer.SubmitRequest, s *Settings){
		"NAMES_NOT_SUPPORTED": func(r *issuer.SubmitRequest, _ *Settings) { raw.URIs = []string{"spiffe://a.example/b"} },
		"KEY_USAGE_REFUSED": func(r *issuer.SubmitRequest, _ *Settings) {
			r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		},
		"CSR_REFUSED": func(r *issuer.SubmitRequest, _ *Settings) {
			r.CSR = newOrder(t, "somebody-else.example.net").CSR
		},
	} {
		r, s := newOrder(t, "www.example.com"), Settings{CertType: "STANDARD_SSL"}
		change(&r, &s)
		if len(raw.URIs) > 0 {
			names, err := certcheck.ParseNames(raw)
			require.NoError(t, err)
			r.Names, raw.URIs = names, nil
		}
		_, err := newRequest(r, s, time.Now())
		refused, ok := issuer.AsPermanent(err)
		require.True(t, ok, reason)
		require.Equal(t, reason, refused.Reason)
	}
	ip, err := certcheck.ParseNames(certcheck.RawNames{IPAddresses: []string{"192.0.2.7"}})
	require.NoError(t, err)
	_, err = altNames(ip, "STANDARD_SSL")
	require.Error(t, err)
	got, err := altNames(ip, privateType)
	require.NoError(t, err)
	require.Equal(t, []string{"192.0.2.7"}, got)
	for want, usages := range map[string][]x509.ExtKeyUsage{
		"": nil, ekuClient: {x509.ExtKeyUsageClientAuth}, ekuBoth: {x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	} {
		eku, err := extendedKeyUsage(usages)
		require.NoError(t, err)
		require.Equal(t, want, eku)
	}
}

func TestACommonNameIsFoundInADistinguishedName(t *testing.T) {
	t.Parallel()
	for dn, want := range map[string]string{
		"cn=www.example.com,o=Example\\, Inc,c=US": "www.example.com", "C=US, O=Example, CN = *.example.com ": "*.example.com", "o=Example": "", "": "",
	} {
		require.Equal(t, want, commonNameOf(dn), dn)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"status":"ACTIVE","trackingId":7,"serialNumber":"0AB1","endEntityCert":"x","chainCerts":["y"],"csr":"AAEC","tracking":{"trackingInfo":"ord-1"}}`), "cn=a,o=b")
	f.Add([]byte(`{"status":null,"trackingId":-1}`), "=")
	f.Fuzz(func(t *testing.T, body []byte, text string) {
		_ = commonNameOf(text)
		_ = keyOfText(text)
		var c certificate
		if json.Unmarshal(body, &c) != nil {
			return
		}
		got, err := submission(issuer.Ref{refTracking: "7", refKey: "k", refReplaces: "7"}, c)
		if err != nil {
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
			return
		}
		require.Equal(t, "7", got.Ref[refTracking])
		if got.State == issuer.Issued {
			require.NotEmpty(t, got.CertificatePEM)
		}
		if ours := got.Ref[refSerial]; ours != "" {
			_, err := issuer.ParseSerial(ours)
			require.NoError(t, err)
		}
		_ = isOrder(c, issuer.FindRequest{OrderID: text})
		var l listedCertificate
		if json.Unmarshal(body, &l) == nil {
			require.NotEmpty(t, listed(l).Key)
		}
	})
}

package entrustgateway

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func newOrder(t *testing.T) issuer.SubmitRequest {
	t.Helper()
	names, err := certcheck.ParseNames(certcheck.RawNames{
		CommonName: "www.example.com", DNSNames: []string{"www.example.com", "example.com"}, IPAddresses: []string{"192.0.2.7", "2001:db8::7"},
		EmailAddresses: []string{"ops@example.com"}, URIs: []string{"spiffe://example.com/web"},
	})
	require.NoError(t, err)
	return issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, certcheck.ECDSAP256), names)
}

func profileOf(t *testing.T, text string) profile {
	t.Helper()
	var p profileResponse
	require.NoError(t, json.Unmarshal([]byte(`{"profile":`+text+`}`), &p))
	return p.Profile
}

func TestAnEnrolmentHasItsNamesByType(t *testing.T) {
	t.Parallel()
	r := newOrder(t)
	now := time.Date(2026, 3, 1, 12, 0, 0, 700, time.UTC)
	r.RequestedAt, r.Lifetime = now.Add(-time.Minute), 24*time.Hour
	s := Settings{
		ProfileID: "tls", ValidityForm: validityInterval, ReferenceProperty: "tracking.trackingInfo",
		Properties: map[string]string{"tracking.requesterName": "Ada"}, SubjectVariables: map[string]string{"o": "Example"},
	}
	got, err := newRequest(r, profileOf(t, `{"subjectVariableRequirements":[{"name":"cn","required":true},{"name":"o"}]}`), s, now)
	require.NoError(t, err)
	require.Equal(t, []typedValue{{"cn", "www.example.com"}, {"o", "Example"}}, got.SubjectVariables)
	require.Equal(t, []typedValue{
		{"dNSName", "www.example.com"}, {"dNSName", "example.com"}, {"iPAddress", "192.0.2.7"}, {"iPAddress", "2001:db8::7"},
		{"rfc822Name", "ops@example.com"}, {"uniformResourceIdentifier", "spiffe://example.com/web"},
	}, got.SubjectAltNames)
	require.Equal(t, "2026-03-01T12:00:00Z/2026-03-02T11:59:00Z", got.Details.ValidityPeriod)
	require.False(t, got.Details.UseSANFromCSR)
	require.Equal(t, map[string]string{"tracking.requesterName": "Ada", "tracking.trackingInfo": "ord-1"}, got.Properties)
	require.Len(t, s.Properties, 1, "the settings are not changed")
	der, err := base64.StdEncoding.DecodeString(got.CSR)
	require.NoError(t, err)
	require.Equal(t, r.CSR.Raw, der)
	s.ValidityForm, s.ReferenceProperty, s.Properties = validityDuration, "", nil
	got, err = newRequest(r, profile{}, s, now)
	require.NoError(t, err)
	require.Equal(t, "PT1438M", got.Details.ValidityPeriod, "never longer than asked for")
	require.Nil(t, got.Properties)
	require.Equal(t, "CN", got.SubjectVariables[0].Type, "the profile does not say")
}

func TestTheCommonNameGoesByTheProfile(t *testing.T) {
	t.Parallel()
	n := newOrder(t).Names
	for text, want := range map[string][]typedValue{
		`{"subjectVariableRequirements":[{"name":"commonName"}]}`: {{"commonName", "www.example.com"}},
		`{"subjectVariableRequirements":[{"name":"uid"}]}`:        nil,
		`{}`: {{"CN", "www.example.com"}},
	} {
		got, err := subjectVariables(n, profileOf(t, text), nil)
		require.NoError(t, err)
		require.Equal(t, want, got, text)
	}
	required := profileOf(t, `{"subjectVariableRequirements":[{"name":"cn","required":true}]}`)
	n.CommonName = ""
	got, err := subjectVariables(n, required, nil)
	require.NoError(t, err)
	require.Equal(t, []typedValue{{"cn", "www.example.com"}}, got, "it is one of the names")
	got, err = subjectVariables(n, profile{}, nil)
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = subjectVariables(certcheck.Names{URIs: []string{"spiffe://a/b"}}, required, nil)
	require.Error(t, err)
}

func TestThePagesOfTheFeedEnd(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		`{"morePages":true,"nextPageIndex":"2"}`: true, `{"hasMore":true,"nextPageIndex":"2"}`: true,
		`{"hasMore":true}`: false, `{"hasMore":true,"nextPageIndex":"1"}`: false, `{"nextPageIndex":"2"}`: false, `{}`: false,
	} {
		var r eventsResponse
		require.NoError(t, json.Unmarshal([]byte(text), &r))
		require.Equal(t, want, r.more("1"), text)
	}
}

func TestAnErrorWithoutACodeIsNotTheGateways(t *testing.T) {
	t.Parallel()
	code, words, ok := readError([]byte(`{"type":"ErrorResponse","error":{"code":"not-found","message":"no such CA","target":"caId"}}`))
	require.True(t, ok)
	require.Equal(t, "not-found", code)
	require.Equal(t, "no such CA [caId]", words)
	code, _, ok = readError([]byte(`{"timestamp":1,"status":404,"error":"Not Found","path":"/x"}`))
	require.True(t, ok)
	require.Empty(t, code)
	for _, foreign := range []string{``, `<html>`, `[]`, `null`, `{`} {
		_, _, ok = readError([]byte(foreign))
		require.False(t, ok, foreign)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"enrollment":{"id":"1","status":"ACCEPTED","body":""},"message":{"message":"x"}}`), "AAEC", "5912bd91")
	f.Add([]byte(`{"enrollment":{"id":"1","serialNumber":"0AB","status":"COMPLETED","body":"AAEC","chain":[{"certificateData":"AA=="}]}}`), "", "")
	f.Fuzz(func(t *testing.T, body []byte, data, serial string) {
		_, _, _ = readError(body)
		if ours, ok := canonical(serial); ok {
			_, err := issuer.ParseSerial(ours)
			require.NoError(t, err)
		}
		if c, ok := decodeOne(data); ok {
			require.NotEmpty(t, above(c, []*x509.Certificate{c, c}))
		}
		var e enrollmentResponse
		if json.Unmarshal(body, &e) == nil {
			ref := placed(issuer.Ref{refKey: "k"}, e.Enrollment)
			require.Equal(t, "k", ref[refKey])
			require.LessOrEqual(t, len(decodeAll(e.Enrollment.Chain)), maxChain)
		}
		o, ok := listed(event{Certificate: data, SerialNumber: serial, EventDate: string(body)}, time.Time{})
		if ok {
			require.NotEmpty(t, o.Key)
			require.Equal(t, o.Key, o.Ref[refSerial])
		}
	})
}

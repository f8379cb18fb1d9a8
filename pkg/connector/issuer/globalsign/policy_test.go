package globalsign

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// policyOf reads a validation policy.
func policyOf(t *testing.T, text string) policy {
	t.Helper()
	p, err := parsePolicy(json.RawMessage(text))
	require.NoError(t, err)
	return p
}

// wholePolicy has all members that matter, some of shapes that are not known.
const wholePolicy = `{
	"validity": {"secondsmin": 3600, "secondsmax": 86400, "not_before_negative_skew": 120, "not_before_positive_skew": 3600, "issuer_expiry": 1999999999},
	"subject_dn": {
		"common_name": {"presence": "REQUIRED", "format": "^.+$"}, "organization": {"presence": "STATIC", "format": "GMO"},
		"organizational_unit": {"static": false, "list": ["^.+$"], "mincount": 1, "maxcount": 3}, "country": "of no known shape",
		"extra_attributes": {"1.2.3": {"static": true}}
	},
	"san": {
		"dns_names": {"static": false, "list": ["^.+$"], "mincount": 0, "maxcount": 2}, "emails": {"static": false, "list": [], "mincount": 0, "maxcount": 0},
		"ip_addresses": null
	},
	"extended_key_usages": {"ekus": {"static": true, "list": ["1.3.6.1.5.5.7.3.1"], "mincount": 1, "maxcount": 1}, "critical": true},
	"signature": {"algorithm": {"presence": "STATIC", "list": ["RSA-PSS"]}, "hash_algorithm": {"presence": "REQUIRED", "list": ["SHA-512", "SHA-256"]}},
	"public_key": {"key_type": "ECDSA", "allowed_lengths": [256], "key_format": "PKCS8"},
	"public_key_signature": "FORBIDDEN", "custom_extensions": {}, "of_tomorrow": [1]
}`

func newOrder(t *testing.T, dnsNames ...string) issuer.SubmitRequest {
	t.Helper()
	return issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, dnsNames...))
}

func TestThePolicyDecidesWhatIsSent(t *testing.T) {
	t.Parallel()
	p, r, now := policyOf(t, wholePolicy), newOrder(t, "www.example.com", "example.com"), time.Now()
	r.Names.CommonName = ""
	got, err := newRequest(r, p, Subject{Organization: "Example", OrganizationalUnits: []string{"Ops"}, Country: "DE"}, now)
	require.NoError(t, err)
	require.Equal(t, &subjectDN{CommonName: "www.example.com", OrganizationalUnit: []string{"Ops"}, Country: "DE"}, got.SubjectDN,
		"a common name is wanted, the organization is the CA's to put in")
	require.Equal(t, []string{"www.example.com", "example.com"}, got.SAN.DNSNames)
	require.Empty(t, got.ExtendedKeyUsages, "the CA puts them in")
	require.Equal(t, &signature{HashAlgorithm: "SHA-256"}, got.Signature)
	require.Equal(t, now.Add(-time.Minute).Unix(), got.Validity.NotBefore, "half of what the clock may be off")
	require.Equal(t, got.Validity.NotBefore+86400, got.Validity.NotAfter, "a lifetime is shortened")
	block, rest := pem.Decode([]byte(got.PublicKey))
	require.Empty(t, rest)
	require.Equal(t, "PUBLIC KEY", block.Type)
	require.NotContains(t, got.PublicKey[len(got.PublicKey)-1:], "\n")
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	require.NoError(t, err)
	require.True(t, certcheck.SameKey(key, r.CSR.PublicKey))
}

func TestWithoutAPolicyEverythingIsSent(t *testing.T) {
	t.Parallel()
	r := newOrder(t, "www.example.com")
	got, err := newRequest(r, policyOf(t, `{}`), Subject{Organization: "Example"}, time.Now())
	require.NoError(t, err)
	require.Equal(t, &subjectDN{CommonName: "www.example.com", Organization: "Example"}, got.SubjectDN)
	require.Equal(t, []string{"1.3.6.1.5.5.7.3.1"}, got.ExtendedKeyUsages)
	require.Nil(t, got.Signature)
	require.Equal(t, r.RequestedAt.Add(r.Lifetime).Unix(), got.Validity.NotAfter)
	block, _ := pem.Decode([]byte(got.PublicKey))
	require.Equal(t, r.CSR.Raw, block.Bytes)
	text, err := json.Marshal(got)
	require.NoError(t, err)
	require.NotContains(t, string(text), "null")
}

func TestACommonNameThatThePolicyHasNoPlaceForIsLeftOut(t *testing.T) {
	t.Parallel()
	for _, p := range []string{
		`{"subject_dn":{}}`, `{"subject_dn":{"common_name":{"presence":"FORBIDDEN"}}}`, `{"subject_dn":{"common_name":{"presence":"STATIC","format":"x"}}}`,
	} {
		got, err := newRequest(newOrder(t, "www.example.com"), policyOf(t, p), Subject{}, time.Now())
		require.NoError(t, err)
		require.Nil(t, got.SubjectDN, p)
	}
}

func TestWhatThePolicyForbidsIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy, reason string
		change         func(*issuer.SubmitRequest)
	}{
		{`{"san":{"dns_names":{"list":[],"maxcount":0}}}`, "NAMES_NOT_SUPPORTED", nil},
		{`{"san":{"dns_names":{"static":true,"list":["a.example"],"maxcount":9}}}`, "NAMES_NOT_SUPPORTED", nil},
		{`{"san":{"dns_names":{"list":["x"],"maxcount":1}}}`, "NAMES_NOT_SUPPORTED", nil},
		{`{"public_key":{"key_type":"RSA"}}`, "KEY_NOT_SUPPORTED", nil},
		{`{"public_key":{"key_type":"ECDSA","allowed_lengths":[384]}}`, "KEY_NOT_SUPPORTED", nil},
		{`{"public_key":{"key_format":"JWK"}}`, "KEY_FORMAT_NOT_SUPPORTED", nil},
		{`{"public_key":{"key_format":"PKCS8"},"public_key_signature":"REQUIRED"}`, "KEY_FORMAT_NOT_SUPPORTED", nil},
		{`{"validity":{"secondsmin":8640000}}`, "LIFETIME_NOT_SUPPORTED", nil},
		{`{"validity":{"issuer_expiry":1000}}`, "LIFETIME_NOT_SUPPORTED", nil},
		{`{}`, "KEY_USAGE_REFUSED", func(r *issuer.SubmitRequest) { r.ExtKeyUsages = []x509.ExtKeyUsage{99} }},
		{`{"subject_dn":{"common_name":{"presence":"REQUIRED"}}}`, "COMMON_NAME_REQUIRED", func(r *issuer.SubmitRequest) {
			r.Names.CommonName = ""
			r.Names.DNSNames = []string{"a-name-that-is-too-long-for-a-common-name.of-which-there-are-many.example.com"}
		}},
	} {
		r := newOrder(t, "www.example.com", "example.com")
		if c.change != nil {
			c.change(&r)
		}
		_, err := newRequest(r, policyOf(t, c.policy), Subject{}, time.Now())
		refused, ok := issuer.AsPermanent(err)
		require.True(t, ok, c.policy)
		require.Equal(t, c.reason, refused.Reason, c.policy)
	}
}

func TestAKeyOfAnotherKindIsRefused(t *testing.T) {
	t.Parallel()
	require.Error(t, policy{}.check(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize))))
	require.Error(t, policy{}.check(crypto.PublicKey(nil)))
}

func TestAPolicyIsReadMemberByMember(t *testing.T) {
	t.Parallel()
	p := policyOf(t, wholePolicy)
	require.True(t, p.DNSNames.known)
	require.True(t, p.Emails.known)
	require.False(t, p.IPAddresses.known, "null is no policy")
	require.False(t, p.URIs.known)
	require.Empty(t, p.Country.Presence)
	require.EqualValues(t, "STATIC", p.Organization.Presence)
	for _, bad := range []string{``, `[]`, `"x"`, `{`} {
		_, err := parsePolicy(json.RawMessage(bad))
		require.Error(t, err, bad)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(wholePolicy))
	f.Add([]byte(`{"san":[],"public_key":{"allowed_lengths":[1e9]},"validity":{"secondsmax":-1}}`))
	f.Add([]byte(`null`))
	order := issuer.SubmitRequest{}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parsePolicy(raw)
		if err != nil {
			return
		}
		r := order
		if r.CSR == nil {
			r = newOrder(t, "www.example.com")
			order = r
		}
		now := time.Now()
		got, err := newRequest(r, p, Subject{}, now)
		if err != nil {
			_, permanent := issuer.AsPermanent(err)
			require.True(t, permanent)
			return
		}
		require.LessOrEqual(t, got.Validity.NotAfter, r.RequestedAt.Add(r.Lifetime).Unix(), "never longer than asked for")
		require.Greater(t, got.Validity.NotAfter, got.Validity.NotBefore)
		require.Equal(t, r.Names.DNSNames, got.SAN.DNSNames)
	})
}

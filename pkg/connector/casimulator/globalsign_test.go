package casimulator

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const hvcaMedia = "application/json;charset=utf-8"

// hvca is a client of GlobalSign's API, written from its guide.
type hvca struct {
	*rig
	token string
}

func newHVCA(t *testing.T) *hvca {
	t.Helper()
	h := &hvca{rig: newRig(t)}
	h.login()
	return h
}

func (h *hvca) url(path string) string { return h.at.URL(GlobalSign) + "/v2" + path }

func (h *hvca) header() http.Header {
	return http.Header{"Authorization": {"Bearer " + h.token}, "Content-Type": {hvcaMedia}}
}

func (h *hvca) login() {
	h.t.Helper()
	own := h.sim.Credentials()
	a := h.must(http.StatusOK, http.MethodPost, h.url("/login"), http.Header{"Content-Type": {hvcaMedia}},
		object{"api_key": own.GlobalSignAPIKey, "api_secret": own.GlobalSignAPISecret})
	var out struct {
		Token string `json:"access_token"`
	}
	a.into(h.t, &out)
	require.NotEmpty(h.t, out.Token)
	h.token = out.Token
}

// order is a request for a certificate as the policy of the account wants it.
func (h *hvca) order(csr []byte, names ...string) object {
	return object{
		"validity":            object{"not_before": h.now().Unix(), "not_after": 0},
		"subject_dn":          object{"common_name": names[0]},
		"san":                 object{"dns_names": names},
		"extended_key_usages": []string{"1.3.6.1.5.5.7.3.1"},
		"public_key":          strings.TrimSpace(csrPEM(csr)),
	}
}

// submit gives the serial number.
func (h *hvca) submit(body object) string {
	h.t.Helper()
	a := h.must(http.StatusCreated, http.MethodPost, h.url("/certificates"), h.header(), body)
	require.Empty(h.t, a.body)
	serial := path.Base(a.header.Get("Location"))
	require.Regexp(h.t, `^[0-9A-F]{16,40}$`, serial)
	return serial
}

func (h *hvca) get(status int, serial string) (out struct {
	Certificate string `json:"certificate"`
	Status      string `json:"status"`
	UpdatedAt   int64  `json:"updated_at"`
	Description string `json:"description"`
}) {
	h.t.Helper()
	h.must(status, http.MethodGet, h.url("/certificates/"+serial), h.header(), nil).into(h.t, &out)
	return out
}

func (h *hvca) trustChain() []*x509.Certificate {
	h.t.Helper()
	var texts []string
	h.must(http.StatusOK, http.MethodGet, h.url("/trustchain"), h.header(), nil).into(h.t, &texts)
	var out []*x509.Certificate
	for _, text := range texts {
		out = append(out, parseOne(h.t, text))
	}
	return out
}

func (h *hvca) count(path string) int {
	h.t.Helper()
	var out struct {
		Value int `json:"value"`
	}
	h.must(http.StatusOK, http.MethodGet, h.url(path), h.header(), nil).into(h.t, &out)
	return out.Value
}

func TestGlobalSignGivesACertificateAfter201And202(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.sim.Play(Scenario{Latency: time.Hour})
	key, csr := newCSR(t, "ignored.example.com")
	serial := h.submit(h.order(csr, "www.example.com", "example.com"))
	require.NotEmpty(t, h.get(http.StatusAccepted, serial).Description)

	h.pass(time.Hour)
	h.login() // an hour is more than a token lives
	got := h.get(http.StatusOK, serial)
	require.Equal(t, "ISSUED", got.Status)
	certificate := parseOne(t, got.Certificate)
	require.Equal(t, serial, fmt.Sprintf("%X", certificate.SerialNumber))
	require.True(t, key.PublicKey.Equal(certificate.PublicKey))
	require.Equal(t, []string{"www.example.com", "example.com"}, certificate.DNSNames)
	chain := h.trustChain()
	require.Len(t, chain, 2)
	require.Equal(t, certificate.RawIssuer, chain[0].RawSubject, "the issuing CA comes first")
	requireChain(t, certificate, chain, h.now())
	require.Empty(t, h.sim.Violations())

	orders := h.sim.Orders()
	require.Len(t, orders, 1)
	require.Equal(t, []string{serial}, orders[0].Serials)
	require.Equal(t, 1, orders[0].Billed)
}

func TestGlobalSignTokensLastTenMinutesByItsClock(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.pass(9 * time.Minute)
	require.Equal(t, 0, h.count("/counters/certificates/issued"))
	h.pass(time.Minute + time.Second)
	h.must(http.StatusUnauthorized, http.MethodGet, h.url("/trustchain"), h.header(), nil)
	require.Empty(t, h.sim.Violations(), "time that passes is nobody's mistake")
	h.login()
	h.trustChain()

	h.sim.SetClock(11 * time.Minute)
	h.must(http.StatusUnauthorized, http.MethodGet, h.url("/trustchain"), h.header(), nil)
	h.login()
	h.trustChain()
}

func TestGlobalSignForgetsATokenBetweenPolls(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	_, csr := newCSR(t, "")
	serial := h.submit(h.order(csr, "www.example.com"))
	h.sim.Set(Fault{CA: GlobalSign, Operation: "status", Kind: TokenExpired, Times: 1})
	h.get(http.StatusUnauthorized, serial)
	h.get(http.StatusUnauthorized, serial) // the fault is over, the token is gone
	h.login()
	require.Equal(t, "ISSUED", h.get(http.StatusOK, serial).Status)
	require.Empty(t, h.sim.Violations())
}

func TestGlobalSignRefusesWhoHasNoTokenOrAForgedOne(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.must(http.StatusUnauthorized, http.MethodGet, h.url("/trustchain"), nil, nil)
	require.Contains(t, h.lastViolation(), "log in first")
	for _, token := range []string{"x", h.token + "x", "a.b.c", strings.Replace(h.token, ".", ".x", 1)} {
		h.must(http.StatusUnauthorized, http.MethodGet, h.url("/trustchain"), http.Header{"Authorization": {"Bearer " + token}}, nil)
		require.Contains(t, h.lastViolation(), "not one of ours")
	}
	a := h.must(http.StatusUnauthorized, http.MethodPost, h.url("/login"), http.Header{"Content-Type": {hvcaMedia}},
		object{"api_key": h.sim.Credentials().GlobalSignAPIKey, "api_secret": "wrong"})
	require.Equal(t, "application/problem+json;charset=utf-8", a.header.Get("Content-Type"))
	require.Contains(t, h.lastViolation(), "key or secret")
}

func TestGlobalSignRequiresAClientCertificate(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.client = clientOf(t, h.sim, false)
	h.must(http.StatusForbidden, http.MethodGet, h.url("/trustchain"), h.header(), nil)
	require.Contains(t, h.lastViolation(), "client certificate")
}

func TestGlobalSignTakesOneContentTypeOnly(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	_, csr := newCSR(t, "")
	for _, media := range []string{"application/json", "application/json; charset=utf-8", "text/plain"} {
		header := h.header()
		header.Set("Content-Type", media)
		h.must(http.StatusUnsupportedMediaType, http.MethodPost, h.url("/certificates"), header, h.order(csr, "www.example.com"))
		require.Contains(t, h.lastViolation(), media)
	}
	require.Empty(t, h.sim.Orders())
}

func TestGlobalSignRefusesWhatThePolicyForbids(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	_, csr := newCSR(t, "")
	good := h.order(csr, "www.example.com")
	now := h.now().Unix()
	tests := map[string]struct {
		body  object
		field string
	}{
		"no validity":        {without(good, "validity"), "validity"},
		"a past beginning":   {and(good, "validity", object{"not_before": now - 86400, "not_after": 0}), "validity.not_before"},
		"a long life":        {and(good, "validity", object{"not_before": now, "not_after": now + 500*86400}), "validity.not_after"},
		"an end before":      {and(good, "validity", object{"not_before": now, "not_after": now - 10}), "validity.not_after"},
		"no usage":           {without(good, "extended_key_usages"), "extended_key_usages"},
		"another usage":      {and(good, "extended_key_usages", []string{"1.3.6.1.5.5.7.3.3"}), "extended_key_usages"},
		"an organisation":    {and(good, "subject_dn", object{"common_name": "a.example", "organization": "Mine"}), "subject_dn.organization"},
		"a bad name":         {and(good, "san", object{"dns_names": []string{"Not A Name"}}), "san.dns_names"},
		"a name twice":       {and(good, "san", object{"dns_names": []string{"a.example", "a.example"}}), "san.dns_names"},
		"a bad address":      {and(good, "san", object{"ip_addresses": []string{"300.1.1.1"}}), "san.ip_addresses"},
		"no name":            {and(without(good, "san"), "subject_dn", object{}), "san"},
		"no key":             {without(good, "public_key"), "public_key"},
		"no PEM":             {and(good, "public_key", base64.StdEncoding.EncodeToString(csr)), "public_key"},
		"a signature":        {and(good, "public_key_signature", "AAAA"), "public_key_signature"},
		"an extension":       {and(good, "custom_extensions", object{"1.2.3": "05"}), "custom_extensions.1.2.3"},
		"another algorithm":  {and(good, "signature", object{"algorithm": "RSA"}), "signature.algorithm"},
		"a directory":        {and(good, "subject_da", object{"gender": "f"}), "subject_da"},
		"a bad e-mail":       {and(good, "san", object{"emails": []string{"nobody"}}), "san.emails"},
		"an other name":      {and(good, "san", object{"other_names": []object{{"type": "1.2.3", "value": "x"}}}), "san.other_names"},
		"a bad URI":          {and(good, "san", object{"uris": []string{"nowhere"}}), "san.uris"},
		"too long a subject": {and(good, "subject_dn", object{"common_name": strings.Repeat("a", 65)}), "subject_dn.common_name"},
	}
	for name, test := range tests {
		a := h.must(http.StatusUnprocessableEntity, http.MethodPost, h.url("/certificates"), h.header(), test.body)
		var out struct {
			Description string            `json:"description"`
			Errors      map[string]string `json:"errors"`
		}
		a.into(t, &out)
		require.Contains(t, out.Errors, test.field, name)
		require.NotEmpty(t, out.Description, name)
		require.Contains(t, h.lastViolation(), test.field, name)
	}
	h.must(http.StatusBadRequest, http.MethodPost, h.url("/certificates"), h.header(), and(good, "csr", "x"))
	require.Contains(t, h.lastViolation(), `unknown field "csr"`)
	h.must(http.StatusBadRequest, http.MethodPost, h.url("/certificates"), h.header(), `{"validity":`)
	require.Empty(t, h.sim.Orders())
}

func TestGlobalSignTakesABareKeyWithProofOfPossession(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.sim.Play(Scenario{GlobalSign: GlobalSignAccount{KeyFormat: "PKCS8", PublicKeySignature: PresenceRequired}})
	key, csr := newCSR(t, "")
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	require.NoError(t, err)
	sum := sha256.Sum256(spki)
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	require.NoError(t, err)
	body := and(h.order(csr, "www.example.com"), "public_key", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})))

	h.must(http.StatusUnprocessableEntity, http.MethodPost, h.url("/certificates"), h.header(), body)
	require.Contains(t, h.lastViolation(), "public_key_signature")
	other, _ := newCSR(t, "")
	forged, err := ecdsa.SignASN1(rand.Reader, other, sum[:])
	require.NoError(t, err)
	h.must(http.StatusUnprocessableEntity, http.MethodPost, h.url("/certificates"), h.header(),
		and(body, "public_key_signature", base64.StdEncoding.EncodeToString(forged)))
	require.Contains(t, h.lastViolation(), "not by the private key")
	h.must(http.StatusUnprocessableEntity, http.MethodPost, h.url("/certificates"), h.header(), h.order(csr, "www.example.com"))
	require.Contains(t, h.lastViolation(), "wants a public key")

	serial := h.submit(and(body, "public_key_signature", base64.StdEncoding.EncodeToString(signature)))
	require.True(t, key.PublicKey.Equal(parseOne(t, h.get(http.StatusOK, serial).Certificate).PublicKey))

	var policy struct {
		PublicKey struct {
			KeyFormat string `json:"key_format"`
		} `json:"public_key"`
		Signature string `json:"public_key_signature"`
	}
	h.must(http.StatusOK, http.MethodGet, h.url("/validationpolicy"), h.header(), nil).into(t, &policy)
	require.Equal(t, "PKCS8", policy.PublicKey.KeyFormat)
	require.Equal(t, "REQUIRED", policy.Signature)
}

func TestGlobalSignRevokesOnceForItsReasons(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	_, csr := newCSR(t, "")
	serial := h.submit(h.order(csr, "www.example.com"))
	target := h.url("/certificates/" + serial)
	h.must(http.StatusUnprocessableEntity, http.MethodPatch, target, h.header(), object{"revocation_reason": "certificateHold"})
	require.Contains(t, h.lastViolation(), "certificateHold")
	h.must(http.StatusBadRequest, http.MethodPatch, target, h.header(), object{"reason": "superseded"})
	h.must(http.StatusNotFound, http.MethodPatch, h.url("/certificates/00"), h.header(), object{"revocation_reason": "superseded"})

	a := h.must(http.StatusNoContent, http.MethodPatch, target, h.header(), object{"revocation_reason": "superseded"})
	require.Empty(t, a.body)
	require.Equal(t, "REVOKED", h.get(http.StatusOK, serial).Status)
	require.Equal(t, []string{serial}, h.sim.Orders()[0].Revoked)
	require.Equal(t, 1, h.count("/counters/certificates/revoked"))
	h.must(http.StatusUnprocessableEntity, http.MethodPatch, target, h.header(), object{"revocation_reason": "superseded"})
}

func TestGlobalSignRekeysAnIssuedCertificate(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	_, csr := newCSR(t, "")
	serial := h.submit(h.order(csr, "www.example.com", "example.com"))
	first := parseOne(t, h.get(http.StatusOK, serial).Certificate)
	key, other := newCSR(t, "")
	a := h.must(http.StatusCreated, http.MethodPost, h.url("/certificates/"+serial), h.header(), object{"public_key": csrPEM(other)})
	next := path.Base(a.header.Get("Location"))
	require.NotEqual(t, serial, next)
	second := parseOne(t, h.get(http.StatusOK, next).Certificate)
	require.True(t, key.PublicKey.Equal(second.PublicKey))
	require.Equal(t, first.DNSNames, second.DNSNames)
	require.Equal(t, first.NotAfter, second.NotAfter)
	require.Len(t, h.sim.Orders(), 1)
	require.Equal(t, 1, h.sim.Orders()[0].Billed)
	require.Equal(t, []string{serial, next}, h.sim.Orders()[0].Serials)
}

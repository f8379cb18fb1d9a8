package e2e_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// listed are the lists of the API with the name of their collection.
func listed() map[string]string {
	return map[string]string{
		"/api/v1/certificates": "certificates", "/api/v1/certificates/plain/versions": "versions", "/api/v1/issuers": "issuers",
		"/api/v1/profiles": "profiles", "/api/v1/policies": "policies", "/api/v1/orders": "orders", "/api/v1/agents": "agents",
		"/api/v1/agents/join-tokens": "join_tokens", "/api/v1/targets": "targets", "/api/v1/deployments": "deployments",
		"/api/v1/jobs": "jobs", "/api/v1/audit": "events", "/api/v1/discovered-certificates": "discovered_certificates",
	}
}

// weakCSR has a key of RSA with 1024 bits, for plain.example.com: crypto/rsa makes none.
const weakCSR = `-----BEGIN CERTIFICATE REQUEST-----
MIIBijCB9AIBADAcMRowGAYDVQQDDBFwbGFpbi5leGFtcGxlLmNvbTCBnzANBgkq
hkiG9w0BAQEFAAOBjQAwgYkCgYEAp9zuQC+h2/v7vcHd6TeS3IkyeUiQPk5rVxsT
a66DRgVP2wZA/ietq+T/Z4mCQMBwuoAytiFo+76TjJpypsk+CGRHsvowxLusu09/
ftQzxWe5GoIPz+4oTr2ugRB0C4CJebXug1STCYoOBatMMLcwGbmDghgifP8zEyNK
ZK9PlW0CAwEAAaAvMC0GCSqGSIb3DQEJDjEgMB4wHAYDVR0RBBUwE4IRcGxhaW4u
ZXhhbXBsZS5jb20wDQYJKoZIhvcNAQELBQADgYEAl9pczfWg2VeIT4SmQWxmadKh
KIt/AblFCkIVl3xUFYHtvBQIH7rQduh+dYPDjQ9w1ZA4OBQXmNJBmcWVtjAFAwnH
TQsqL98eYuQg+6pGoqhV4lRZmTaZOiJFkIvFCxmsf9ukVzsC0MA2N6C95yHZnshg
QwazMstkhDYIkvrS60g=
-----END CERTIFICATE REQUEST-----
`

func TestTheAPIKeepsItsContract(t *testing.T) {
	t.Parallel()
	in := startOne(t, people)
	in.must(t, http.MethodPost, "/api/v1/profiles", object{
		"id": "strict", "name": "strict", "allowed_san_patterns": []string{"*.example.com"}, "allowed_key_algorithms": []string{"ECDSA_P256"},
	})
	in.wants(t, object{"id": "plain", "dns_names": []string{"plain.example.com"}, "profile_id": "strict"})
	in.wants(t, object{"id": "gone", "dns_names": []string{"gone.example.com"}})
	in.must(t, http.MethodDelete, "/api/v1/certificates/gone", nil)
	job := in.job(t, "plain", "AWAITING_CSR")

	t.Run("bad input", func(t *testing.T) {
		t.Run("body", func(t *testing.T) { in.refuses(t, badBodies()) })
		t.Run("certificate", func(t *testing.T) { in.refuses(t, badCertificates()) })
		t.Run("CSR", func(t *testing.T) { in.refuses(t, badCSRs(t)) })
		t.Run("list", func(t *testing.T) { in.refuses(t, badLists()) })
		t.Run("page token", in.pageTokensAreBound)
		t.Run("state", func(t *testing.T) { in.refuses(t, wrongStates(job.str("id"))) })
		t.Run("not found", func(t *testing.T) { in.refuses(t, notFound()) })
	})
	t.Run("only TLS 1.3 is spoken", in.onlyTLS13)
	t.Run("request ids are kept or made", in.requestIDs)
	t.Run("an idempotency key answers the same", in.idempotencyKeys)
	t.Run("JSON has proto names and zero values", in.jsonIsAsPromised)
	t.Run("every list answers", in.everyListAnswers)
	t.Run("HEAD is GET without the body", in.headIsGet)
	t.Run("a PATCH changes what it names", in.patches)
	t.Run("DELETE archives", in.archives)
	t.Run("a chain comes as PEM", in.chainAsPEM)
	t.Run("secrets are write-only", in.secretsAreWriteOnly)
	t.Run("pages are stable under inserts", in.pagesAreStable)
	t.Run("a page has at most a thousand", in.pagesHaveABound)
}

func post(path string, body any) call { return call{method: http.MethodPost, path: path, body: body} }
func get(path string) call            { return call{method: http.MethodGet, path: path} }

func badBodies() []problem {
	const certificates = "/api/v1/certificates"
	large := `{"name":"` + strings.Repeat("x", 1<<20) + `"}`
	return []problem{
		{"unknown field", post(certificates, `{"name":"x","dns_names":["x.example.com"],"issuer_id":"iss-local","colour":"red"}`), invalid("colour", "not a field")},
		{"unknown nested field", post("/api/v1/targets", `{"name":"x","endpoint":{"colour":"red"}}`), invalid("endpoint.colour", "not a field")},
		{"camel case", post(certificates, `{"dnsNames":["x.example.com"]}`), invalid("dnsNames", "dns_names")},
		{"wrong type", post(certificates, `{"dns_names":"x.example.com"}`), invalid("dns_names", "array")},
		{"field twice", post(certificates, `{"name":"a","name":"b"}`), invalid("name", "twice")},
		{"unknown enum name", post(certificates, `{"key_algorithm":"RSA_512"}`), invalid("key_algorithm", "RSA_2048")},
		{"bad duration", post("/api/v1/profiles", `{"name":"x","max_validity":"an hour"}`), invalid("max_validity", "3600s")},
		{"duration as in Go", post("/api/v1/profiles", `{"name":"x","max_validity":"60m"}`), invalid("max_validity", "3600s")},
		{"number too large", post("/api/v1/policies", `{"name":"x","renew_at_fraction":1e400}`), invalid("renew_at_fraction", "too large")},
		{"NUL", post("/api/v1/policies", `{"name":"a\u0000b"}`), invalid("name", "NUL")},
		{"NUL in settings", post("/api/v1/issuers", `{"name":"x","type":"local","config":{"organization":"\u0000"}}`), invalid("config.organization", "NUL")},
		{"not UTF-8", post(certificates, "{\"name\":\"\xff\"}"), refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "UTF-8"}},
		{"malformed JSON", post(certificates, `{"name":`), refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "no JSON"}},
		{"something after the JSON", post(certificates, `{} {}`), refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "after its end"}},
		{"an array", post(certificates, `[]`), refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "want an object"}},
		{"no body", post(certificates, nil), refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "no body"}},
		{"body over 1 MiB", post(certificates, large), refusal{status: 413, code: 3, reason: "BODY_TOO_LARGE", says: "1048576"}},
		{
			"not JSON", call{method: http.MethodPost, path: certificates, body: "name: x", header: map[string]string{"Content-Type": "application/yaml"}},
			refusal{status: 415, code: 3, reason: "MEDIA_TYPE_NOT_SUPPORTED", says: "application/json"},
		},
		{"a GET with a body", call{method: http.MethodGet, path: certificates, body: `{}`}, refusal{status: 400, code: 3, reason: "BODY_NOT_ALLOWED"}},
	}
}

// asked is a certificate that is right but for what changes make of it.
func asked(changes object) call {
	certificate := object{"name": "x", "dns_names": []string{"x.example.com"}, "issuer_id": "iss-local", "profile_id": "strict"}
	maps.Copy(certificate, changes)
	return post("/api/v1/certificates", certificate)
}

func badCertificates() []problem {
	label := strings.Repeat("a", 64)
	return []problem{
		{"bad id", asked(object{"id": "Not_An_Id"}), invalid("id", "3 to 63")},
		{"id too short", asked(object{"id": "ab"}), invalid("id", "3 to 63")},
		{"no name", asked(object{"name": " "}), invalid("name", "required")},
		{"no issuer", asked(object{"issuer_id": ""}), invalid("issuer_id", "required")},
		{"no names", asked(object{"dns_names": []string{}}), invalid("dns_names", "at least one")},
		{"unknown issuer", asked(object{"issuer_id": "iss-none"}), invalid("issuer_id", "iss-none")},
		{"unknown profile", asked(object{"profile_id": "prof-none"}), invalid("profile_id", "prof-none")},
		{"unknown policy", asked(object{"policy_id": "pol-none"}), invalid("policy_id", "pol-none")},
		{"unknown target", asked(object{"target_ids": []string{"target-none"}}), invalid("target_ids[0]", "target-none")},
		{"a SAN with a space", asked(object{"dns_names": []string{"a.example.com", "no name.example.com"}}), invalid("dns_names[1]", "")},
		{"a SAN with an underscore", asked(object{"dns_names": []string{"no_name.example.com"}}), invalid("dns_names[0]", "")},
		{"a label of 64 characters", asked(object{"dns_names": []string{label + ".example.com"}}), invalid("dns_names[0]", "")},
		{"an address as a DNS name", asked(object{"dns_names": []string{"192.0.2.1"}}), invalid("dns_names[0]", "")},
		{"an IP address that is none", asked(object{"ip_addresses": []string{"192.0.2.256"}}), invalid("ip_addresses[0]", "")},
		{"an e-mail address that is none", asked(object{"email_addresses": []string{"nobody"}}), invalid("email_addresses[0]", "")},
		{"a URI that is none", asked(object{"uris": []string{"//relative"}}), invalid("uris[0]", "")},
		{"a common name of another", asked(object{"common_name": "y.example.com"}), invalid("common_name", "alternative names")},
		{"a wildcard that the profile forbids", asked(object{"dns_names": []string{"*.example.com"}}), invalid("dns_names[0]", "strict")},
		{"a name that the profile's patterns forbid", asked(object{"dns_names": []string{"x.example.org"}}), invalid("dns_names[0]", "strict")},
		{"a name of another kind", asked(object{"ip_addresses": []string{"192.0.2.1"}}), invalid("ip_addresses[0]", "strict")},
		{"a key algorithm that the profile forbids", asked(object{"key_algorithm": "RSA_2048"}), invalid("key_algorithm", "strict")},
		{"too many labels", asked(object{"labels": manyLabels()}), invalid("labels", "64")},
		{
			"duplicate id", asked(object{"id": "plain", "dns_names": []string{"plain.example.com"}}),
			refusal{status: 409, code: 6, reason: "CERTIFICATE_EXISTS", says: "plain", meta: map[string]string{"id": "plain"}},
		},
		{"duplicate profile", post("/api/v1/profiles", object{"id": "strict", "name": "x"}), refusal{status: 409, code: 6, reason: "PROFILE_EXISTS"}},
		{"duplicate policy", post("/api/v1/policies", object{"id": "pol-default", "name": "x"}), refusal{status: 409, code: 6, reason: "POLICY_EXISTS"}},
		{"duplicate issuer", post("/api/v1/issuers", object{"id": "iss-local", "name": "x", "type": "local"}), refusal{status: 409, code: 6, reason: "ISSUER_EXISTS"}},
		{"unknown issuer type", post("/api/v1/issuers", object{"name": "x", "type": "none"}), invalid("type", "none")},
		{"unknown issuer setting", post("/api/v1/issuers", object{"name": "x", "type": "local", "config": object{"colour": "red"}}), invalid("config", "colour")},
		{"a pattern that is none", post("/api/v1/profiles", object{"name": "x", "allowed_san_patterns": []string{"a.*.example.com"}}), invalid("allowed_san_patterns[0]", "")},
		{"a lifetime below the floor", post("/api/v1/profiles", object{"name": "x", "max_validity": "60s"}), invalid("max_validity", "10 minutes")},
		{"a fraction of one", post("/api/v1/policies", object{"name": "x", "renew_at_fraction": 1}), invalid("renew_at_fraction", "")},
		{"a target of no agent", post("/api/v1/targets", object{"name": "x", "type": "file", "agent_id": "agent-none", "config": object{"fullchain_path": "/tmp/x", "key_path": "/tmp/y"}}), invalid("agent_id", "agent-none")},
	}
}

func manyLabels() object {
	labels := object{}
	for i := range 65 {
		labels[fmt.Sprintf("key-%d", i)] = "v"
	}
	return labels
}

func badCSRs(t *testing.T) []problem {
	t.Helper()
	key := newKey(t)
	submit := func(csr string) call { return post("/api/v1/certificates/plain/csr", object{"csr_pem": csr}) }
	broken := csrDER(t, key, "plain.example.com")
	broken[len(broken)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := csrPEM(csrDER(t, key, "plain.example.com"))
	return []problem{
		{"another name", submit(csrPEM(csrDER(t, key, "other.example.com"))), invalid("csr_pem", "other.example.com")},
		{"one name more", submit(csrPEM(csrDER(t, key, "plain.example.com", "more.example.com"))), invalid("csr_pem", "more.example.com")},
		{"weak key", submit(weakCSR), invalid("csr_pem", "1024")},
		{"key algorithm that the profile forbids", submit(csrPEM(csrDER(t, rsaKey, "plain.example.com"))), invalid("csr_pem", "RSA_2048")},
		{"broken signature", submit(csrPEM(broken)), invalid("csr_pem", "signature")},
		{"no PEM", submit("not a CSR"), invalid("csr_pem", "")},
		{"another PEM", submit(strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE")), invalid("csr_pem", "CERTIFICATE")},
		{"two CSRs", submit(good + good), invalid("csr_pem", "after the request")},
		{"empty", submit(""), invalid("csr_pem", "")},
	}
}

func badLists() []problem {
	var out []problem
	for path := range listed() {
		out = append(out,
			problem{path + " negative page_size", get(path + "?page_size=-1"), invalid("page_size", "negative")},
			problem{path + " page_size that is no number", get(path + "?page_size=ten"), invalid("page_size", "ten")},
			problem{path + " unknown order_by", get(path + "?order_by=colour"), invalid("order_by", "")},
			problem{path + " unknown parameter", get(path + "?colour=red"), invalid("colour", "not a parameter")},
			problem{path + " page_token that is none", get(path + "?page_token=AAAA"), invalid("page_token", "")},
		)
	}
	for _, path := range []string{"certificates", "agents", "jobs", "orders", "deployments", "discovered-certificates"} {
		out = append(out, problem{path + " unknown status", get("/api/v1/" + path + "?status=PURPLE"), invalid("status", "PURPLE")})
	}
	return append(out,
		problem{"unknown type of jobs", get("/api/v1/jobs?type=PAINT"), invalid("type", "PAINT")},
		problem{"unknown outcome", get("/api/v1/audit?outcome=PURPLE"), invalid("outcome", "PURPLE")},
		problem{"a time that is none", get("/api/v1/certificates?expires_before=yesterday"), invalid("expires_before", "RFC 3339")},
		problem{"include_total that is neither", get("/api/v1/certificates?include_total=yes"), invalid("include_total", "true or false")},
		problem{"a filter twice", get("/api/v1/certificates?owner=a&owner=b"), invalid("owner", "more than once")},
		problem{"a filter with NUL", get("/api/v1/jobs?certificate_id=%00"), invalid("certificate_id", "NUL")},
		problem{"a filter that is not UTF-8", get("/api/v1/certificates?name=%ff"), invalid("name", "UTF-8")},
		problem{"an id with NUL", get("/api/v1/orders/%00"), invalid("id", "NUL")},
		problem{"a version that is no number", get("/api/v1/certificates/plain/versions/one"), invalid("version", "integer")},
		problem{"a label without a key", get("/api/v1/certificates?label=x"), invalid("label", "")},
		problem{"an unknown format", get("/api/v1/certificates/plain/versions/1?format=der"), invalid("format", "pem")},
	)
}

func (in *installation) pageTokensAreBound(t *testing.T) {
	first := in.get(t, "/api/v1/certificates?page_size=1&issuer_id=iss-local").object(t)
	token := first.str("next_page_token")
	require.NotEmpty(t, token)
	altered := []byte(token)
	altered[len(altered)/2] = map[bool]byte{true: 'B', false: 'A'}[altered[len(altered)/2] == 'A']
	with := func(query string) call { return get("/api/v1/certificates?page_size=1&" + query) }
	in.refuses(t, []problem{
		{"altered", with("issuer_id=iss-local&page_token=" + string(altered)), invalid("page_token", "not a token")},
		{"with other filters", with("issuer_id=other&page_token=" + token), invalid("page_token", "other filters")},
		{"without its filter", with("page_token=" + token), invalid("page_token", "other filters")},
		{"with another order", with("issuer_id=iss-local&order_by=name&page_token=" + token), invalid("page_token", "order_by")},
		{"of another list", get("/api/v1/profiles?page_token=" + token), invalid("page_token", "")},
	})
	second := in.get(t, "/api/v1/certificates?page_size=1&issuer_id=iss-local&page_token="+token).object(t)
	require.NotEqual(t, first.list("certificates")[0].str("id"), second.list("certificates")[0].str("id"))
}

func wrongStates(job string) []problem {
	conflict := func(reason, says, state string) refusal {
		return refusal{status: 409, code: 10, reason: reason, says: says, meta: map[string]string{"state": state}}
	}
	return []problem{
		{
			"change of an archived certificate", call{method: http.MethodPatch, path: "/api/v1/certificates/gone", body: object{"owner": "x"}},
			conflict("CERTIFICATE_WRONG_STATE", "ARCHIVED", "ARCHIVED"),
		},
		{"renewal of an archived certificate", post("/api/v1/certificates/gone/renew", object{"force": true}), conflict("CERTIFICATE_ARCHIVED", "ARCHIVED", "ARCHIVED")},
		{"approval of a job that needs none", post("/api/v1/jobs/"+job+"/approve", object{}), conflict("JOB_WRONG_STATE", "AWAITING_CSR", "AWAITING_CSR")},
		{"retry of an open job", post("/api/v1/jobs/"+job+"/retry", object{}), conflict("JOB_WRONG_STATE", "AWAITING_CSR", "AWAITING_CSR")},
		{
			"renewal while a job is open", post("/api/v1/certificates/plain/renew", object{"force": true}),
			refusal{status: 409, code: 10, reason: "JOB_OPEN", says: job, meta: map[string]string{"job_id": job, "state": "AWAITING_CSR"}},
		},
		{
			"another revision", call{method: http.MethodPatch, path: "/api/v1/certificates/plain", body: object{"owner": "x"}, header: map[string]string{"If-Match": `"999"`}},
			refusal{status: 412, code: 9, reason: "REVISION_MISMATCH", says: "revision", meta: map[string]string{"revision": "1"}},
		},
		{
			"a weak revision", call{method: http.MethodPatch, path: "/api/v1/certificates/plain", body: object{"owner": "x"}, header: map[string]string{"If-Match": `W/"1"`}},
			refusal{status: 412, code: 9, reason: "REVISION_MISMATCH"},
		},
		{
			"a revision that is no text", call{method: http.MethodPatch, path: "/api/v1/certificates/plain", body: object{"owner": "x"}, header: map[string]string{"If-Match": `"ü"`}},
			invalid("If-Match", "ASCII"),
		},
		{
			"deletion of another revision", call{method: http.MethodDelete, path: "/api/v1/profiles/prof-default", header: map[string]string{"If-Match": `"999"`}},
			refusal{status: 412, code: 9, reason: "REVISION_MISMATCH"},
		},
		{
			"a profile that is used", call{method: http.MethodDelete, path: "/api/v1/profiles/strict"},
			refusal{status: 409, code: 10, reason: "PROFILE_IN_USE", says: "strict"},
		},
	}
}

func notFound() []problem {
	var out []problem
	for collection, reason := range map[string]string{
		"certificates": "CERTIFICATE", "issuers": "ISSUER", "profiles": "PROFILE", "policies": "POLICY", "orders": "ORDER", "agents": "AGENT",
		"targets": "TARGET", "deployments": "DEPLOYMENT", "jobs": "JOB", "audit": "EVENT", "discovered-certificates": "DISCOVERED_CERTIFICATE",
	} {
		out = append(out, problem{collection, get("/api/v1/" + collection + "/none-such"), refusal{status: 404, code: 5, reason: reason + "_NOT_FOUND", says: "none-such"}})
		out = append(out, problem{collection + " id too long", get("/api/v1/" + collection + "/" + strings.Repeat("x", 64)), invalid("id", "63")})
	}
	return append(out,
		problem{"version", get("/api/v1/certificates/plain/versions/7"), refusal{status: 404, code: 5, reason: "VERSION_NOT_FOUND"}},
		problem{"renewal", post("/api/v1/certificates/none-such/renew", object{}), refusal{status: 404, code: 5, reason: "CERTIFICATE_NOT_FOUND"}},
		problem{"explanation", get("/api/v1/certificates/none-such/explain"), refusal{status: 404, code: 5, reason: "CERTIFICATE_NOT_FOUND"}},
		problem{"path", get("/api/v1/nothing"), refusal{status: 404, code: 5, reason: "PATH_NOT_FOUND", says: "/api/v1/nothing"}},
		problem{"verb", call{method: http.MethodPut, path: "/api/v1/certificates/plain", body: object{}}, refusal{status: 405, code: 12, reason: "METHOD_NOT_ALLOWED", says: "PATCH"}},
	)
}

func (in *installation) onlyTLS13(t *testing.T) {
	_, err := in.dial(t, tls.VersionTLS12)
	require.ErrorContains(t, err, "protocol version")
	conn, err := in.dial(t, tls.VersionTLS13)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func (in *installation) requestIDs(t *testing.T) {
	const mine = "my-request.1:2_3"
	require.Equal(t, mine, in.get(t, "/api/v1/certificates", "X-Request-Id", mine).header.Get("X-Request-Id"))
	require.Equal(t, mine, in.get(t, "/api/v1/nothing", "X-Request-Id", mine).header.Get("X-Request-Id"))
	made := map[string]bool{}
	for _, bad := range []string{"", "two words", strings.Repeat("x", 1000), `<script>`} {
		id := in.get(t, "/api/v1/version", "X-Request-Id", bad).header.Get("X-Request-Id")
		require.Regexp(t, `^[0-9a-f-]{36}$`, id)
		made[id] = true
	}
	require.Len(t, made, 4, "each request has its own")
	a := in.send(t, call{
		method: http.MethodPatch, path: "/api/v1/certificates/plain", body: object{"team": "web"}, header: map[string]string{"X-Request-Id": mine},
	})
	require.Equal(t, http.StatusOK, a.status, a.body)
	in.wait(t, "the request's id on the record", func() bool {
		events := in.must(t, http.MethodGet, "/api/v1/audit?request_id="+mine, nil).list("events")
		return len(events) == 1 && events[0].str("action") == "certificate.updated"
	})
}

func (in *installation) idempotencyKeys(t *testing.T) {
	create := func(key, body string, who string) answer {
		return in.send(t, call{method: http.MethodPost, path: "/api/v1/certificates", key: who, body: body, header: map[string]string{"Idempotency-Key": key}})
	}
	const one = `{"name":"once","dns_names":["once.example.com"],"issuer_id":"iss-local"}`
	first := create("k1", one, rootKey)
	require.Equal(t, http.StatusCreated, first.status, first.body)
	require.Equal(t, "/api/v1/certificates/"+first.object(t).str("id"), first.header.Get("Location"))
	again := create("k1", `{"issuer_id":"iss-local", "dns_names":["once.example.com"], "name":"once"}`, rootKey)
	require.Equal(t, first.status, again.status)
	require.Equal(t, first.body, again.body)
	create("k1", strings.ReplaceAll(one, "once", "twice"), rootKey).refused(t, refusal{status: 409, code: 10, reason: "IDEMPOTENCY_KEY_REUSED"})
	require.NotEqual(t, first.object(t).str("id"), create("k1", one, aliceKey).object(t).str("id"), "another caller's key is another key")
	require.NotEqual(t, first.object(t).str("id"), create("k2", one, rootKey).object(t).str("id"))
	create(strings.Repeat("k", 129), one, rootKey).refused(t, invalid("request_id", "128"))

	renew := call{method: http.MethodPost, path: "/api/v1/certificates/gone/renew", body: object{"force": true}, header: map[string]string{"Idempotency-Key": "k3"}}
	for range 2 { // what was refused is tried again, and not remembered
		in.send(t, renew).refused(t, refusal{status: 409, code: 10, reason: "CERTIFICATE_ARCHIVED"})
	}
}

func (in *installation) jsonIsAsPromised(t *testing.T) {
	plain := in.get(t, "/api/v1/certificates/plain").object(t)
	zero := object{
		"common_name": "", "ip_addresses": []any{}, "email_addresses": []any{}, "uris": []any{}, "target_ids": []any{}, "labels": map[string]any{},
		"current_version": 0.0, "serial_number": "", "fingerprint_sha256": "", "not_before": nil, "not_after": nil, "revocation_time": nil, "revocation_reason": "",
		"owner": "", "environment": "",
	}
	for name, value := range zero {
		require.Contains(t, plain, name)
		require.Equal(t, value, plain[name], name)
	}
	require.Equal(t, "PENDING", plain.str("status"))
	require.Equal(t, "ECDSA_P256", plain.str("key_algorithm"))
	require.Equal(t, "pol-default", plain.str("policy_id"))
	for _, name := range []string{"create_time", "update_time"} {
		at, err := time.Parse(time.RFC3339Nano, plain.str(name))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), at, time.Hour)
		require.True(t, strings.HasSuffix(plain.str(name), "Z"), "UTC: %s", plain.str(name))
	}
	require.Equal(t, "7776000s", in.get(t, "/api/v1/profiles/prof-default").object(t).str("max_validity"))
	paths := slices.Collect(maps.Keys(listed()))
	paths = append(paths, "/api/v1/certificates/plain", "/api/v1/certificates/plain/explain", "/api/v1/stats/summary", "/api/v1/version", "/api/v1/auth/check")
	for _, path := range paths {
		a := in.get(t, path)
		require.Equal(t, http.StatusOK, a.status, "%s %s", path, a.body)
		var v any
		require.NoError(t, json.Unmarshal([]byte(a.body), &v))
		snakeCase(t, path, v)
	}
	require.JSONEq(t, `{"status":"healthy"}`, in.send(t, call{method: http.MethodGet, path: "/health", key: nobody}).body)
}

var snake = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// snakeCase looks at all names of an answer; maps have the keys of users, and names of states.
func snakeCase(t *testing.T, path string, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			require.Regexp(t, snake, name, path)
			if !slices.Contains([]string{"labels", "config", "data", "certificates", "agents", "deployments", "jobs"}, name) || isList(value) {
				snakeCase(t, path+" "+name, value)
			}
		}
	case []any:
		for _, e := range v {
			snakeCase(t, path, e)
		}
	}
}

func isList(v any) bool { _, ok := v.([]any); return ok }

func (in *installation) everyListAnswers(t *testing.T) {
	for path, collection := range listed() {
		o := in.get(t, path).object(t)
		items, ok := o[collection].([]any)
		require.True(t, ok, "%s: %s is no list: %v", path, collection, o[collection])
		require.Contains(t, o, "next_page_token", path)
		require.NotContains(t, o, "total_size", path)
		if collection == "join_tokens" {
			continue
		}
		total := in.get(t, path+"?include_total=true&page_size=1").object(t)
		require.GreaterOrEqual(t, total["total_size"], float64(len(items)), path)
		if collection == "deployments" || collection == "targets" || collection == "versions" || collection == "orders" || collection == "discovered_certificates" {
			require.Equal(t, []any{}, o[collection], "%s: empty, and not null", path)
		}
	}
}

func (in *installation) headIsGet(t *testing.T) {
	for _, path := range []string{"/api/v1/certificates/plain", "/api/v1/profiles", "/api/v1/certificates?issuer_id=iss-local", "/api/v1/nothing", "/ca/iss-local.pem", "/health"} {
		got, head := in.get(t, path), in.send(t, call{method: http.MethodHead, path: path})
		require.Equal(t, got.status, head.status, path)
		require.Empty(t, head.body, path)
		require.NotEmpty(t, got.body, path)
		for _, name := range []string{"Content-Type", "Content-Length", "ETag", "Cache-Control"} {
			require.Equal(t, got.header.Get(name), head.header.Get(name), "%s %s", path, name)
		}
	}
}

func (in *installation) patches(t *testing.T) {
	created := in.wants(t, object{"id": "patched", "dns_names": []string{"patched.example.com"}, "owner": "ada", "team": "web", "labels": object{"tier": "one"}})
	const path = "/api/v1/certificates/patched"
	patch := func(query, ifMatch string, body object) answer {
		c := call{method: http.MethodPatch, path: path + query, body: body, header: map[string]string{}}
		if ifMatch != "" {
			c.header["If-Match"] = ifMatch
		}
		return in.send(t, c)
	}
	one := patch("", `"1"`, object{"owner": "grace"}).object(t)
	require.EqualValues(t, 2, one["revision"])
	require.Equal(t, "grace", one.str("owner"))
	require.Equal(t, "web", one.str("team"), "what a PATCH does not name stays")
	patch("", `"1"`, object{"owner": "late"}).refused(t, refusal{status: 412, code: 9, reason: "REVISION_MISMATCH", meta: map[string]string{"revision": "2"}})

	two := patch("?update_mask=owner", "", object{"owner": "", "team": "not in the mask"}).object(t)
	require.Empty(t, two.str("owner"))
	require.Equal(t, "web", two.str("team"))
	whole := in.get(t, path).object(t) // read, changed and sent back as it is
	whole["labels"] = object{"tier": "two"}
	three := patch("", "", whole).object(t)
	require.Equal(t, map[string]any{"tier": "two"}, three["labels"])
	require.Equal(t, created["create_time"], three["create_time"])
	require.NotEqual(t, created["update_time"], three["update_time"])
	patch("?update_mask=colour", "", object{"owner": "x"}).refused(t, refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "colour"})
	patch("", "", object{}).refused(t, refusal{status: 400, code: 3, reason: "INVALID_ARGUMENT", says: "no field"})
	patch("", "", object{"dns_names": []string{"no name"}}).refused(t, invalid("dns_names[0]", ""))
	patch("", "", object{"issuer_id": "iss-none"}).refused(t, invalid("issuer_id", "iss-none"))
}

func (in *installation) archives(t *testing.T) {
	in.wants(t, object{"id": "archived", "dns_names": []string{"archived.example.com"}})
	in.job(t, "archived", "AWAITING_CSR")
	for range 2 { // safe to repeat
		require.Equal(t, "ARCHIVED", in.must(t, http.MethodDelete, "/api/v1/certificates/archived", nil).str("status"))
	}
	require.Equal(t, "ARCHIVED", in.get(t, "/api/v1/certificates/archived").object(t).str("status"))
	require.Equal(t, []string{"archived"}, ids(in.get(t, "/api/v1/certificates?status=ARCHIVED&name=archived").object(t).list("certificates")))
	require.Empty(t, in.get(t, "/api/v1/certificates?status=PENDING&name=archived.").object(t).list("certificates"))
	in.job(t, "archived", "CANCELLED")
}

func ids(items []object) []string {
	out := make([]string, 0, len(items))
	for _, i := range items {
		out = append(out, i.str("id"))
	}
	return out
}

func (in *installation) chainAsPEM(t *testing.T) {
	c := in.issues(t, object{"id": "pem", "dns_names": []string{"pem.example.com"}})
	require.Equal(t, "ACTIVE", c.str("status"))
	require.Regexp(t, `^[1-9a-f][0-9a-f]*$`, c.str("serial_number"))
	require.Regexp(t, `^[0-9a-f]{64}$`, c.str("fingerprint_sha256"))
	a := in.get(t, "/api/v1/certificates/pem/versions/1?format=pem")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, "application/x-pem-file", a.header.Get("Content-Type"))
	var chain []*x509.Certificate
	for rest := []byte(a.body); len(strings.TrimSpace(string(rest))) > 0; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		require.NotNil(t, block)
		parsed, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		chain = append(chain, parsed)
	}
	require.GreaterOrEqual(t, len(chain), 2)
	require.Equal(t, c.str("serial_number"), chain[0].SerialNumber.Text(16))
	require.NoError(t, chain[0].CheckSignatureFrom(chain[1]))
	version := in.get(t, "/api/v1/certificates/pem/versions/1?format=json").object(t)
	require.Equal(t, a.body, version.str("certificate_pem")+version.str("chain_pem"))

	require.Equal(t, []string{"pem"}, ids(in.get(t, "/api/v1/certificates?serial_number="+strings.ToUpper(c.str("serial_number"))).object(t).list("certificates")))
	require.Equal(t, []string{"pem"}, ids(in.get(t, "/api/v1/certificates?fingerprint_sha256="+c.str("fingerprint_sha256")).object(t).list("certificates")))
	in.send(t, post("/api/v1/certificates/pem/renew", object{})).refused(t, refusal{status: 409, code: 10, reason: "NOT_DUE", says: "force", meta: map[string]string{"state": "ACTIVE"}})
	in.send(t, post("/api/v1/certificates/pem/revoke", object{"reason": "BORED"})).refused(t, invalid("reason", "SUPERSEDED"))
	in.must(t, http.MethodPost, "/api/v1/certificates/pem/revoke", object{"reason": "SUPERSEDED"})
	in.send(t, post("/api/v1/certificates/pem/renew", object{"force": true})).refused(t, refusal{status: 409, code: 10, reason: "CERTIFICATE_REVOKED", meta: map[string]string{"state": "REVOKED"}})
	in.send(t, call{method: http.MethodPatch, path: "/api/v1/certificates/pem", body: object{"owner": "x"}}).
		refused(t, refusal{status: 409, code: 10, reason: "CERTIFICATE_WRONG_STATE", meta: map[string]string{"state": "REVOKED"}})
}

func (in *installation) secretsAreWriteOnly(t *testing.T) {
	created := in.send(t, post("/api/v1/issuers", object{"id": "own-ca", "name": "own CA", "type": "local", "config": object{"organization": "Example"}}))
	require.Equal(t, http.StatusCreated, created.status, created.body)
	for _, a := range []answer{created, in.get(t, "/api/v1/issuers/own-ca")} {
		config, _ := a.object(t)["config"].(map[string]any)
		require.Equal(t, map[string]any{"organization": "Example", "material": map[string]any{"set": true}}, config)
	}
	require.NotContains(t, in.get(t, "/api/v1/issuers").body, "PRIVATE KEY")
	sent := call{method: http.MethodPatch, path: "/api/v1/issuers/own-ca", body: object{"config": object{"organization": "Example", "material": object{"set": true}}}}
	a := in.send(t, sent)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.EqualValues(t, 2, a.object(t)["revision"])

	token := in.must(t, http.MethodPost, "/api/v1/agents/join-tokens", object{"max_uses": 2})
	require.NotEmpty(t, token.str("token"))
	list := in.get(t, "/api/v1/agents/join-tokens")
	require.Contains(t, list.body, token.str("id"))
	require.NotContains(t, list.body, token.str("token"))
	in.send(t, call{method: http.MethodDelete, path: "/api/v1/agents/join-tokens/" + token.str("id")})
	require.NotContains(t, in.get(t, "/api/v1/agents/join-tokens").body, token.str("id"))
}

const crowd = 120

// pagesAreStable lists a crowd page by page while others come in, before and after the place that was reached.
func (in *installation) pagesAreStable(t *testing.T) {
	add := func(key, id string) {
		in.as(key).wants(t, object{"id": id, "dns_names": []string{id + ".example.com"}, "labels": object{"set": "crowd"}, "team": "crowd"})
	}
	var wg sync.WaitGroup
	for w, key := range []string{rootKey, aliceKey, bobKey} {
		wg.Go(func() {
			for i := w; i < crowd; i += 3 {
				add(key, fmt.Sprintf("crowd-%03d", i))
			}
		})
	}
	wg.Wait()
	in = in.as(viewerKey)
	total := in.get(t, "/api/v1/certificates?label.set=crowd&include_total=true&page_size=7").object(t)
	require.EqualValues(t, crowd, total["total_size"])
	require.Len(t, total.list("certificates"), 7)
	require.Empty(t, in.get(t, "/api/v1/certificates?label.set=other").object(t).list("certificates"))
	require.Empty(t, in.get(t, "/api/v1/certificates?label.set=crowd&label.tier=one").object(t).list("certificates"))
	require.Len(t, in.get(t, "/api/v1/certificates?name=crowd-00&team=crowd").object(t).list("certificates"), 10)

	for n, order := range []string{"name", "name desc", "create_time desc", "not_after", "update_time"} {
		seen, page := map[string]int{}, 0
		for token := ""; token != "" || page == 0; page++ {
			query := url.Values{"label.set": {"crowd"}, "page_size": {"25"}, "order_by": {order}, "page_token": {token}}
			o := in.get(t, "/api/v1/certificates?"+query.Encode()).object(t)
			for _, id := range ids(o.list("certificates")) {
				seen[id]++
			}
			token = o.str("next_page_token")
			add(rootKey, fmt.Sprintf("crowd-000-%d-%d", n, page)) // behind, ahead, or both
			add(aliceKey, fmt.Sprintf("crowd-zzz-%d-%d", n, page))
		}
		for i := range crowd {
			require.Equal(t, 1, seen[fmt.Sprintf("crowd-%03d", i)], "crowd-%03d in order of %s", i, order)
		}
		for id, times := range seen {
			require.Equal(t, 1, times, "%s in order of %s", id, order)
		}
	}
}

// database connects to the private Postgres as its superuser.
func (in *installation) database(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), "host="+in.dir+"/postgres/run user=certctl dbname=certctl")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func (in *installation) pagesHaveABound(t *testing.T) {
	// A thousand calls would take long: the rows are put where they belong.
	_, err := in.database(t).Exec(t.Context(), `INSERT INTO issuance.profiles
SELECT (jsonb_populate_record(p, jsonb_build_object('id', 'copy-' || n))).* FROM issuance.profiles p, generate_series(1, 1001) n WHERE p.id = 'prof-default'`)
	require.NoError(t, err)
	first := in.get(t, "/api/v1/profiles?page_size=1000000").object(t)
	require.Len(t, first.list("profiles"), 1000)
	rest := in.get(t, "/api/v1/profiles?page_size=1001&page_token="+first.str("next_page_token")).object(t)
	require.NotEmpty(t, rest.list("profiles"))
	require.Empty(t, rest.str("next_page_token"))
	require.Len(t, in.get(t, "/api/v1/profiles").object(t).list("profiles"), 50)
}

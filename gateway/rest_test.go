package gateway_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/gateway"
	"github.com/certctl/certctl/pkg/rpcctx"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

func TestJSONHasProtoNamesAndZeroValues(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.get(t, "/api/v1/certificates/cert-1")
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	var c map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.body), &c))
	require.Equal(t, "cert-1", c["id"])
	require.Equal(t, []any{}, c["dns_names"])
	require.Empty(t, c["serial_number"])
	require.Contains(t, c, "not_after")
	require.NotContains(t, a.body, ": ", "the same bytes in every build")
	w.inventory.set(nil)
	require.JSONEq(t, `{"certificates":[],"next_page_token":""}`, w.get(t, "/api/v1/certificates").body)
}

func TestNothingOfAClientsHeadersBecomesMetadataButWhatIsNamed(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	forged := "eyJ0eXBlIjoidXNlciIsImlkIjoicm9vdCIsInJvbGUiOiJhZG1pbiJ9" // {"type":"user","id":"root","role":"admin"}
	a := w.get(t, "/api/v1/certificates/cert-1", "Authorization: Bearer "+viewerKey,
		"Grpc-Metadata-Certctl-Caller: "+forged, "Certctl-Caller: "+forged, "Grpc-Metadata-X-Evil: 1", "Grpcgateway-Evil: 1",
		"Grpc-Metadata-Authorization: Bearer x", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil", "Cookie: a=b", "Grpc-Timeout: 1n",
		"Certctl-Credential: x", "Te: trailers", "Idempotency-Key: key-1", `If-Match: "3"`)
	require.Equal(t, http.StatusOK, a.StatusCode, a.body)
	caller, md := w.inventory.last()
	require.Equal(t, rpcctx.Caller{Type: rpcctx.User, ID: "dash", Role: rpcctx.RoleViewer}, caller)
	require.Equal(t, []string{"key-1"}, md.Get("idempotency-key"))
	require.Equal(t, []string{`"3"`}, md.Get("if-match"))
	for key := range md {
		require.Contains(t, []string{
			":authority", "content-type", "user-agent", "grpc-accept-encoding", // grpc's own
			"authorization", "certctl-caller", "x-request-id", // the connection's
			"idempotency-key", "if-match", // the user's
		}, key)
	}
	require.NotEqual(t, []string{forged}, md.Get("certctl-caller"))
	for name := range a.Header {
		require.False(t, strings.HasPrefix(name, "Grpc-"), name)
	}
}

func TestCreationsAnswer201WithTheirPlace(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.request(t, http.MethodPost, "/api/v1/certificates", `{"name":"x","dns_names":["x.example.com"],"key_algorithm":"ECDSA_P256","labels":{"a":"b"}}`)
	require.Equal(t, http.StatusCreated, a.StatusCode, a.body)
	require.Equal(t, "/api/v1/certificates/cert-new", a.Header.Get("Location"))
	require.Contains(t, a.body, `"dns_names":["x.example.com"]`)
	b := w.request(t, http.MethodPost, "/api/v1/agents/join-tokens", "")
	require.Equal(t, http.StatusCreated, b.StatusCode, b.body)
	require.Contains(t, b.body, `"id":"join-1"`)
}

func TestBodiesAreStrict(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for body, fields := range map[string][]string{
		`{"name":"x","owwner":"y"}`:                   {"owwner"},
		`{"name":"x","dnsNames":["a"]}`:               {"dnsNames"},
		`{"dns_names":"a","name":7,"labels":{"a":1}}`: {"dns_names", "labels.a", "name"},
		`{"dns_names":["a",null,3]}`:                  {"dns_names[1]", "dns_names[2]"},
		`{"key_algorithm":"DSA"}`:                     {"key_algorithm"},
		`{"key_algorithm":1}`:                         {"key_algorithm"},
		`{"not_after":"tomorrow"}`:                    {"not_after"},
		`{"name":"x","name":"y"}`:                     {"name"},
		`{"not_after":"0000-01-01T00:00:00Z"}`:        {"not_after"},
		`{"name":"a\u0000b"}`:                         {"name"},
		`{"labels":{"a\u0000":"b"}}`:                  {"labels"},
		"{\"name\":\"a\xffb\"}":                       {""},
		`{"revision":1.5}`:                            {"revision"},
		`{"revision":99999999999}`:                    {"revision"},
		`{"name":"x"} {"name":"y"}`:                   {""},
		`{"name":"x"`:                                 {""},
		`[]`:                                          {""},
		`null`:                                        {""},
		`"text"`:                                      {""},
		strings.Repeat("[", 100000):                   {""},
		`{"name":` + strings.Repeat("[", 100) + `}`:   {""},
	} {
		p := w.request(t, http.MethodPost, "/api/v1/certificates", body).problem(t, http.StatusBadRequest)
		require.Equal(t, fields, p.fields(), body[:min(len(body), 60)])
	}
	p := w.request(t, http.MethodPost, "/api/v1/certificates", `{"dnsNames":[]}`).problem(t, http.StatusBadRequest)
	require.Contains(t, p.Message, "dns_names", "the right name is told")
	p = w.request(t, http.MethodDelete, "/api/v1/certificates/cert-1", `{"a":1}`).problem(t, http.StatusBadRequest)
	require.Equal(t, "BODY_NOT_ALLOWED", p.reason())
	w.request(t, http.MethodPost, "/api/v1/certificates", `<a/>`, "Content-Type: text/xml").problem(t, http.StatusUnsupportedMediaType)
	require.Empty(t, w.inventory.callers, "nothing reached the service")
	a := w.request(t, http.MethodPost, "/api/v1/certificates", `{"name":"x"}`, "Content-Type: application/x-www-form-urlencoded")
	require.Equal(t, http.StatusCreated, a.StatusCode, "curl -d without a header")
}

func TestFieldsOfAServicesViolationsAreNamedAsTheyWereSent(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	p := w.request(t, http.MethodPost, "/api/v1/certificates", `{"name":"x","dns_names":["bad"]}`).problem(t, http.StatusBadRequest)
	require.Equal(t, []string{"dns_names[0]"}, p.fields())
	require.Equal(t, "dns_names[0]: is no name", p.Message)
	p = w.request(t, http.MethodPost, "/api/v1/certificates", "").problem(t, http.StatusBadRequest)
	require.Equal(t, []string{""}, p.fields())
}

func TestABodyOverTheLimitIs413(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	fits := `{"name":"` + strings.Repeat("x", 1<<20-11) + `"}`
	require.Len(t, fits, 1<<20)
	require.NotEqual(t, http.StatusRequestEntityTooLarge, w.request(t, http.MethodPost, "/api/v1/certificates", fits).StatusCode)
	large := fits + " "
	p := w.request(t, http.MethodPost, "/api/v1/certificates", large).problem(t, http.StatusRequestEntityTooLarge)
	require.Equal(t, "BODY_TOO_LARGE", p.reason())
	for _, verb := range []string{http.MethodPost, http.MethodGet} { // without a length
		r, err := http.NewRequestWithContext(t.Context(), verb, w.url+"/api/v1/certificates", struct{ *strings.Reader }{strings.NewReader(large)})
		require.NoError(t, err)
		r.ContentLength = -1
		r.Header.Set("Authorization", "Bearer "+adminKey)
		w.do(t, r).problem(t, http.StatusRequestEntityTooLarge)
	}
}

func TestParametersAreStrict(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for query, fields := range map[string][]string{
		"statsu=ACTIVE":               {"statsu"},
		"status=active":               {"status"},
		"status=2":                    {"status"},
		"status=STATUS_UNSPECIFIED":   {"status"},
		"page_size=ten":               {"page_size"},
		"pageSize=10":                 {"pageSize"},
		"page_size=1&page_size=2":     {"page_size"},
		"include_total=yes":           {"include_total"},
		"expires_before=tomorrow&x=1": {"expires_before", "x"},
		"label=a":                     {"label"},
		"label.=a":                    {"label."},
		"label%5Ba%5D=b":              {"label[a]"},
		"label.a=1&label.a=2":         {"label.a"},
		"name.x=1":                    {"name.x"},
		"a=%zz":                       {""},
		"name=%00":                    {"name"},
		"name=%ff":                    {"name"},
		"label.a=%00":                 {"label.a"},
		"label.%00=a":                 {""},
	} {
		p := w.get(t, "/api/v1/certificates?"+query).problem(t, http.StatusBadRequest)
		require.Equal(t, fields, p.fields(), query)
	}
	require.Equal(t, []string{"id"}, w.get(t, "/api/v1/certificates/cert-1?id=cert-2").problem(t, http.StatusBadRequest).fields())
	require.Equal(t, []string{"id"}, w.get(t, "/api/v1/certificates/%00").problem(t, http.StatusBadRequest).fields())
	require.Equal(t, []string{"version"}, w.get(t, "/api/v1/certificates/cert-1/versions/one").problem(t, http.StatusBadRequest).fields())
	require.Equal(t, []string{"id"}, w.request(t, http.MethodPatch, "/api/v1/certificates/%FF", `{"owner":"x"}`).problem(t, http.StatusBadRequest).fields())
	for _, header := range []string{"If-Match", "Idempotency-Key"} {
		p := w.request(t, http.MethodPatch, "/api/v1/certificates/cert-1", `{"owner":"x"}`, header+": \"\u00fc\"").problem(t, http.StatusBadRequest)
		require.Equal(t, []string{header}, p.fields(), "a condition must not be lost on the way")
	}
	require.Equal(t, []string{"force"}, w.request(t, http.MethodPost, "/api/v1/certificates/c/renew?force=true", "{}").problem(t, http.StatusBadRequest).fields())
	require.Zero(t, w.inventory.lists.Load())
}

func TestParametersReachTheService(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.get(t, "/api/v1/certificates?status=ACTIVE&status=REVOKED&page_size=-1&include_total=true&order_by=expires_at+desc"+
		"&label.team.name=web&label.env=prod&expires_before=2030-01-02T03:04:05Z&name=x%20y")
	require.Equal(t, http.StatusOK, a.StatusCode, a.body)
	r := w.inventory.listed
	require.Equal(t, []inventoryv1.Certificate_Status{inventoryv1.Certificate_ACTIVE, inventoryv1.Certificate_REVOKED}, r.GetStatus())
	require.EqualValues(t, -1, r.GetPageSize())
	require.True(t, r.GetIncludeTotal())
	require.Equal(t, "expires_at desc", r.GetOrderBy())
	require.Equal(t, map[string]string{"team.name": "web", "env": "prod"}, r.GetLabel())
	require.Equal(t, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), r.GetExpiresBefore().AsTime())
	require.Equal(t, "x y", r.GetName())
}

func TestAPatchChangesTheFieldsThatItHas(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.request(t, http.MethodPatch, "/api/v1/certificates/cert-1", `{"id":"cert-2","owner":"","labels":{"a":"b"},"status":"ACTIVE","revision":3}`)
	require.Equal(t, http.StatusOK, a.StatusCode, a.body)
	require.Equal(t, []string{"labels", "owner"}, w.inventory.updated.GetUpdateMask().GetPaths(), "not the id, and not what the server writes")
	require.Equal(t, "cert-1", w.inventory.updated.GetCertificate().GetId(), "the path counts")
	w.request(t, http.MethodPatch, "/api/v1/certificates/cert-1?update_mask=owner,team&if_revision=3", `{"owner":"x"}`)
	require.Equal(t, []string{"owner", "team"}, w.inventory.updated.GetUpdateMask().GetPaths())
	require.EqualValues(t, 3, w.inventory.updated.GetIfRevision())
	for _, body := range []string{"", "{}", `{"status":"ACTIVE"}`} {
		w.request(t, http.MethodPatch, "/api/v1/certificates/cert-1", body).problem(t, http.StatusBadRequest)
	}
}

func TestErrorsOfServicesKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for id, want := range map[string]struct {
		status int
		reason string
	}{
		"missing": {404, "CERTIFICATE_NOT_FOUND"}, "conflict": {409, "WRONG_STATE"}, "precondition": {412, "REVISION_MISMATCH"},
		"limited": {429, "RATE_LIMITED"}, "secret": {500, "INTERNAL"}, "panics": {500, "INTERNAL"},
	} {
		a := w.get(t, "/api/v1/certificates/"+id)
		require.Equal(t, want.reason, a.problem(t, want.status).reason(), id)
		require.NotContains(t, a.body, "hunter2")
		require.Empty(t, a.Header.Get("ETag"))
	}
	require.Equal(t, "2", w.get(t, "/api/v1/certificates/limited").Header.Get("Retry-After"))
	p := w.get(t, "/api/v1/certificates/conflict").problem(t, 409)
	require.Equal(t, map[string]any{"state": "ARCHIVED"}, p.Details[0]["metadata"])
	require.Equal(t, 501, w.get(t, "/api/v1/stats/summary").StatusCode)
	w.get(t, "/api/v1/certificates/"+strings.Repeat("x", 64)).problem(t, 400)
}

func TestARequestThatTakesTooLongEndsEverywhere(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.RequestTimeout = 200 * time.Millisecond })
	w.get(t, "/api/v1/certificates/slow").problem(t, http.StatusGatewayTimeout)
	select {
	case <-w.inventory.cancelled:
	case <-time.After(5 * time.Second):
		require.Fail(t, "the service goes on")
	}
}

func TestAVersionComesAsPEM(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	path := "/api/v1/certificates/cert-1/versions/2"
	a := w.get(t, path+"?format=pem")
	require.Equal(t, "application/x-pem-file", a.Header.Get("Content-Type"))
	require.Equal(t, "-----BEGIN CERTIFICATE-----\n", a.body)
	require.Contains(t, w.get(t, path).body, `"version":2`)
	require.Contains(t, w.get(t, path+"?format=json").body, `"version":2`)
	require.Equal(t, []string{"format"}, w.get(t, path+"?format=der").problem(t, 400).fields())
	require.Equal(t, []string{"format"}, w.get(t, "/api/v1/certificates?format=pem").problem(t, 400).fields())
}

func TestHeadIsLikeGetWithoutTheBody(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, path := range []string{"/api/v1/certificates", "/api/v1/certificates/cert-1", "/api/v1/version", "/health", "/openapi.json", "/api/v1/jobs"} {
		get, head := w.get(t, path), w.request(t, http.MethodHead, path, "")
		require.Equal(t, get.StatusCode, head.StatusCode, path)
		require.Empty(t, head.body)
		for _, h := range []string{"Content-Type", "Content-Length", "Etag", "Cache-Control"} {
			require.Equal(t, get.Header.Get(h), head.Header.Get(h), path+" "+h)
		}
	}
}

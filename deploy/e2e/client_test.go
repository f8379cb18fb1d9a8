package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// nobody is the key of a call without one.
const nobody = "-"

// call is a request, byte for byte as a test wants it.
type call struct {
	method, path string
	key          string // "": the installation's
	header       map[string]string
	body         any // a string as it is, else as JSON
}

func (c call) reader(t *testing.T) io.Reader {
	t.Helper()
	switch body := c.body.(type) {
	case nil:
		return http.NoBody
	case string:
		return bytes.NewReader([]byte(body))
	default:
		b, err := json.Marshal(body)
		require.NoError(t, err)
		return bytes.NewReader(b)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// send does a call.
func (in *installation) send(t *testing.T, c call) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), c.method, in.url+c.path, c.reader(t))
	require.NoError(t, err)
	key := c.key
	if key == "" {
		key = in.key
	}
	if key != nobody {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	resp, err := in.client.Do(req)
	require.NoError(t, err, "%s %s", c.method, c.path)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	require.NoError(t, err)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
}

// get reads a path; headers come as name and value in turn.
func (in *installation) get(t *testing.T, path string, header ...string) answer {
	t.Helper()
	c := call{method: http.MethodGet, path: path, header: map[string]string{}}
	for i := 0; i < len(header); i += 2 {
		c.header[header[i]] = header[i+1]
	}
	return in.send(t, c)
}

// object reads the answer as a JSON object.
func (a answer) object(t *testing.T) object {
	t.Helper()
	require.Equal(t, "application/json", a.header.Get("Content-Type"), "%d %s", a.status, a.body)
	var o object
	require.NoError(t, json.Unmarshal([]byte(a.body), &o), "%s", a.body)
	return o
}

// refusal is how a call is refused.
type refusal struct {
	status, code int
	reason       string
	field        string            // of one of the violations; "": there need be none
	says         string            // is in the message, or in what the field's violation says
	meta         map[string]string // is in the metadata of the ErrorInfo
}

const (
	errorInfo  = "type.googleapis.com/google.rpc.ErrorInfo"
	badRequest = "type.googleapis.com/google.rpc.BadRequest"
)

// invalid is the refusal of a field.
func invalid(field, says string) refusal {
	return refusal{status: http.StatusBadRequest, code: 3, reason: "INVALID_ARGUMENT", field: field, says: says}
}

// refused holds an answer against a refusal.
func (a answer) refused(t *testing.T, want refusal) {
	t.Helper()
	require.Equal(t, want.status, a.status, "%s", a.body)
	require.NotEmpty(t, a.header.Get("X-Request-Id"))
	o := a.object(t)
	require.EqualValues(t, want.code, o["code"], "%s", a.body)
	require.NotEmpty(t, o.str("message"))
	var info, violations object
	for _, d := range o.list("details") {
		switch d.str("@type") {
		case errorInfo:
			info = d
		case badRequest:
			violations = d
		}
	}
	require.Equal(t, want.reason, info.str("reason"), "%s", a.body)
	require.Equal(t, "certctl", info.str("domain"))
	for k, v := range want.meta {
		meta, _ := info["metadata"].(map[string]any)
		require.Equal(t, v, meta[k], "%s", a.body)
	}
	if want.field == "" {
		require.Contains(t, o.str("message"), want.says)
		return
	}
	for _, v := range violations.list("field_violations") {
		if v.str("field") == want.field {
			require.Contains(t, v.str("description"), want.says)
			return
		}
	}
	require.Fail(t, "the field is not named", "%s: %s", want.field, a.body)
}

// problem is a call that has to be refused.
type problem struct {
	name string
	call call
	want refusal
}

func (in *installation) refuses(t *testing.T, problems []problem) {
	t.Helper()
	for _, p := range problems {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			in.send(t, p.call).refused(t, p.want)
		})
	}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// csrDER makes a certificate signing request for DNS names.
func csrDER(t *testing.T, key crypto.Signer, names ...string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
	}, key)
	require.NoError(t, err)
	return der
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// wants creates a certificate without targets: who asks keeps the key.
func (in *installation) wants(t *testing.T, certificate object) object {
	t.Helper()
	if certificate["name"] == nil {
		certificate["name"] = certificate["id"]
	}
	if certificate["issuer_id"] == nil {
		certificate["issuer_id"] = "iss-local"
	}
	return in.must(t, http.MethodPost, "/api/v1/certificates", certificate)
}

// job waits until the newest job of a certificate has a status.
func (in *installation) job(t *testing.T, certificate, status string) (job object) {
	t.Helper()
	in.wait(t, "job of "+certificate+" to be "+status, func() bool {
		jobs := in.must(t, http.MethodGet, "/api/v1/jobs?page_size=1&certificate_id="+certificate, nil).list("jobs")
		if len(jobs) == 0 {
			return false
		}
		job = jobs[0]
		return job.str("status") == status
	})
	return job
}

// issues creates a certificate without targets and brings a CSR, until version 1 is there.
func (in *installation) issues(t *testing.T, certificate object) object {
	t.Helper()
	in.wants(t, certificate)
	id, _ := certificate["id"].(string)
	names, _ := certificate["dns_names"].([]string)
	in.job(t, id, "AWAITING_CSR")
	in.must(t, http.MethodPost, "/api/v1/certificates/"+id+"/csr", object{"csr_pem": csrPEM(csrDER(t, newKey(t), names...))})
	return in.version(t, id, 1)
}

// version waits until a certificate has a version and its job is done.
func (in *installation) version(t *testing.T, id string, version int) (certificate object) {
	t.Helper()
	in.job(t, id, "COMPLETED")
	in.wait(t, "version of "+id, func() bool {
		certificate = in.must(t, http.MethodGet, "/api/v1/certificates/"+id, nil)
		return certificate["current_version"] == float64(version)
	})
	return certificate
}

// dial speaks TLS with the gateway.
func (in *installation) dial(t *testing.T, version uint16) (*tls.Conn, error) {
	t.Helper()
	transport, _ := in.client.Transport.(*http.Transport)
	cfg := transport.TLSClientConfig.Clone()
	cfg.MinVersion, cfg.MaxVersion = version, version
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(t.Context(), "tcp", in.url[len("https://"):])
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

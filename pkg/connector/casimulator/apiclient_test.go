package casimulator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// plainClient asks one CA for a certificate as its guide says, and reads what it gets, without any judgement.
type plainClient struct {
	*rig
	ca  string
	key *ecdsa.PrivateKey
	// submit is the request for a certificate, poll asks how it is, collect is for the certificate, and chain for those
	// above it: several of them are the same request at some CAs.
	submit               func() (method, url string, header http.Header, body any)
	poll, collect, chain func(id string) (url string, header http.Header)
	// id reads the answer to submit.
	id func(answered) string
	// leaf reads the answer to collect, and certificates the answer to chain: in the order in which they stand.
	leaf         func(answered) *x509.Certificate
	certificates func(answered) []*x509.Certificate
	// serial reads what the answer to poll says of the serial number.
	serial func(answered) string
	// gone is the status for orders that the CA does not know, refused the one for those that it refused, and why what
	// their answer says: DigiCert's order information has no reason.
	gone, refused int
	why           string
	// pollOperation, collectOperation and chainOperation are how faults call them.
	pollOperation, collectOperation, chainOperation string
}

// pemsOf reads PEM.
func pemsOf(t *testing.T, text []byte) (out []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		out = append(out, c)
	}
	return out
}

// field reads a value of a JSON answer.
func field(t *testing.T, a answered, names ...string) any {
	t.Helper()
	var v any
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.UseNumber()
	require.NoError(t, d.Decode(&v), "%s", a.body)
	for _, n := range names {
		m, ok := v.(object)
		require.True(t, ok, "%s", a.body)
		v = m[n]
	}
	return v
}

func textField(t *testing.T, a answered, names ...string) string {
	t.Helper()
	switch v := field(t, a, names...).(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

const (
	faultyName = "www.example.com"
	caaReason  = "CAA forbids it"
)

func digicertClient(t *testing.T) *plainClient {
	t.Helper()
	r := newRig(t)
	own := r.sim.Credentials()
	key, csr := newCSR(t, faultyName)
	header := http.Header{"X-Dc-Devkey": {own.DigiCertAPIKey}}
	base := r.at.URL(DigiCert) + "/services/v2"
	at := func(middle, end string) func(string) (string, http.Header) {
		return func(id string) (string, http.Header) {
			if end != "" { // the download goes by the number of the certificate
				o, ok := r.sim.store.byID(DigiCert, id)
				require.True(t, ok)
				id = o.newest().ID
			}
			return base + middle + id + end, header
		}
	}
	return &plainClient{
		rig: r, ca: DigiCert, key: key, gone: http.StatusNotFound, refused: http.StatusOK, why: `"status":"rejected"`,
		pollOperation: "status", collectOperation: "collect", chainOperation: "collect",
		submit: func() (string, string, http.Header, any) {
			return http.MethodPost, base + "/order/certificate/ssl_basic", header, object{
				"certificate": object{
					"common_name": faultyName, "dns_names": []string{faultyName}, "csr": csrPEM(csr), "signature_hash": "sha256",
					"server_platform": object{"id": -1},
				},
				"organization": object{"id": own.DigiCertOrganization}, "order_validity": object{"years": 1}, "skip_approval": true,
			}
		},
		poll: at("/order/certificate/", ""), collect: at("/certificate/", "/download/format/pem_all"),
		chain:        at("/certificate/", "/download/format/pem_all"),
		id:           func(a answered) string { return textField(t, a, "id") },
		leaf:         func(a answered) *x509.Certificate { return pemsOf(t, a.body)[0] },
		certificates: func(a answered) []*x509.Certificate { return pemsOf(t, a.body) },
		serial:       func(a answered) string { return textField(t, a, "certificate", "serial_number") },
	}
}

func sectigoClient(t *testing.T) *plainClient {
	t.Helper()
	r := newRig(t)
	own := r.sim.Credentials()
	key, csr := newCSR(t, faultyName)
	header := http.Header{"Login": {own.SectigoLogin}, "Password": {own.SectigoPassword}, "Customeruri": {own.SectigoCustomerURI}}
	base := r.at.URL(Sectigo) + "/api/ssl/v1"
	collect := func(id string) (string, http.Header) { return base + "/collect/" + id + "?format=pemia", header }
	return &plainClient{
		rig: r, ca: Sectigo, key: key, gone: http.StatusNotFound, refused: http.StatusOK, why: caaReason,
		pollOperation: "status", collectOperation: "collect", chainOperation: "collect",
		submit: func() (string, string, http.Header, any) {
			return http.MethodPost, base + "/enroll", header, object{
				"orgId": own.SectigoOrganization, "csr": csrPEM(csr), "certType": own.SectigoCertType, "term": 90,
				"numberServers": 1, "serverType": -1, "comments": "order-7",
			}
		},
		poll:    func(id string) (string, http.Header) { return base + "/" + id, header },
		collect: collect, chain: collect,
		id:           func(a answered) string { return textField(t, a, "sslId") },
		leaf:         func(a answered) *x509.Certificate { return pemsOf(t, a.body)[0] },
		certificates: func(a answered) []*x509.Certificate { return pemsOf(t, a.body) },
		serial:       func(a answered) string { return strings.ReplaceAll(textField(t, a, "serialNumber"), ":", "") },
	}
}

func globalSignClient(t *testing.T) *plainClient {
	t.Helper()
	h := newHVCA(t)
	key, csr := newCSR(t, "")
	get := func(id string) (string, http.Header) { return h.url("/certificates/" + id), h.header() }
	body := h.order(csr, faultyName)
	leaf := func(a answered) *x509.Certificate { return parseOne(t, textField(t, a, "certificate")) }
	return &plainClient{
		rig: h.rig, ca: GlobalSign, key: key, gone: http.StatusNotFound, refused: http.StatusUnprocessableEntity, why: caaReason,
		pollOperation: "status", collectOperation: "status", chainOperation: "chain",
		submit: func() (string, string, http.Header, any) {
			return http.MethodPost, h.url("/certificates"), h.header(), body
		},
		poll: get, collect: get,
		chain: func(string) (string, http.Header) { return h.url("/trustchain"), h.header() },
		id:    func(a answered) string { return path.Base(a.header.Get("Location")) },
		leaf:  leaf,
		certificates: func(a answered) (out []*x509.Certificate) {
			for _, text := range field(t, a).([]any) { //nolint:forcetypeassert // it panics otherwise, which fails the test
				out = append(out, parseOne(t, text.(string))) //nolint:forcetypeassert // likewise
			}
			return out
		},
		// The number that a client goes by is that of the path.
		serial: func(a answered) string {
			_, told := h.sim.store.bySerial(GlobalSign, formatSerial(leaf(a).SerialNumber))
			if told {
				return formatSerial(leaf(a).SerialNumber)
			}
			return "that of the path"
		},
	}
}

func gatewayClient(t *testing.T) *plainClient {
	t.Helper()
	g := newCAGW(t)
	key, csr := newCSR(t, "")
	body := and(g.order(csr, faultyName), "includeCa", true)
	get := func(id string) (string, http.Header) { return g.url("/enrollments/" + id), nil }
	leaf := func(a answered) *x509.Certificate { return parseDER(t, textField(t, a, "enrollment", "body")) }
	return &plainClient{
		rig: g.rig, ca: EntrustGateway, key: key, gone: http.StatusNotFound, refused: http.StatusOK, why: caaReason,
		pollOperation: "status", collectOperation: "status", chainOperation: "status",
		submit: func() (string, string, http.Header, any) { return http.MethodPost, g.url("/enrollments"), nil, body },
		poll:   get, collect: get, chain: get, leaf: leaf,
		id: func(a answered) string { return textField(t, a, "enrollment", "id") },
		certificates: func(a answered) (out []*x509.Certificate) {
			var e enrolled
			a.into(t, &e)
			for _, c := range e.Enrollment.Chain {
				out = append(out, parseDER(t, c.Data))
			}
			return out
		},
		serial: func(a answered) string { return strings.ToUpper(textField(t, a, "enrollment", "serialNumber")) },
	}
}

func ecsClientOf(t *testing.T) *plainClient {
	t.Helper()
	e := newECS(t)
	key, csr := newCSR(t, faultyName)
	body := e.order(csr, faultyName)
	get := func(id string) (string, http.Header) { return e.url("/certificates/" + id), e.header() }
	return &plainClient{
		rig: e.rig, ca: EntrustECS, key: key, gone: http.StatusNotFound, refused: http.StatusOK, why: caaReason,
		pollOperation: "status", collectOperation: "status", chainOperation: "status",
		submit: func() (string, string, http.Header, any) {
			return http.MethodPost, e.url("/certificates"), e.header(), body
		},
		poll: get, collect: get, chain: get,
		id:   func(a answered) string { return textField(t, a, "trackingId") },
		leaf: func(a answered) *x509.Certificate { return parseOne(t, textField(t, a, "endEntityCert")) },
		certificates: func(a answered) (out []*x509.Certificate) {
			var s shown
			a.into(t, &s)
			for _, text := range s.ChainCerts {
				out = append(out, parseOne(t, text))
			}
			return out
		},
		serial: func(a answered) string { return textField(t, a, "serialNumber") },
	}
}

// set makes one thing go wrong at an operation.
func (p *plainClient) set(operation string, f Fault) {
	f.CA, f.Operation = p.ca, operation
	p.sim.Set(f)
}

// order submits, whatever comes back.
func (p *plainClient) order() (answered, error) {
	p.t.Helper()
	method, url, header, body := p.submit()
	return p.send(method, url, header, body)
}

// placed submits an order that is accepted.
func (p *plainClient) placed() string {
	p.t.Helper()
	a, err := p.order()
	require.NoError(p.t, err)
	require.Less(p.t, a.status, 300, "%s", a.body)
	return p.id(a)
}

func (p *plainClient) ask(status int, of func(string) (string, http.Header), id string) answered {
	p.t.Helper()
	url, header := of(id)
	return p.must(status, http.MethodGet, url, header, nil)
}

// pending tells whether the CA has no certificate yet.
func (p *plainClient) pending(id string) bool {
	p.t.Helper()
	url, header := p.collect(id)
	a, err := p.send(http.MethodGet, url, header, nil)
	require.NoError(p.t, err)
	return !bytes.Contains(a.body, []byte("BEGIN CERTIFICATE--")) && !bytes.Contains(a.body, []byte(`"body"`))
}

func (p *plainClient) orders(n int) {
	p.t.Helper()
	require.Len(p.t, p.sim.Orders(), n, "orders at the CA")
}

package casimulator_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

const dcBase = "/digicert/services/v2"

func dcOrder(t *testing.T, r *rig, name string, change func(map[string]any)) map[string]any {
	t.Helper()
	body := map[string]any{
		"certificate": map[string]any{
			"common_name": name, "dns_names": []string{"www." + name}, "csr": csr(t, name, "www."+name), "signature_hash": "sha256",
			"server_platform": map[string]any{"id": -1},
		},
		"organization": map[string]any{"id": r.sim.Credentials().DigiCertOrganization}, "order_validity": map[string]any{"years": 1},
		"comments": "ref-" + name, "skip_approval": true,
	}
	if change != nil {
		change(body)
	}
	return body
}

// dcSubmit places an order and gives its number and that of its certificate.
func dcSubmit(t *testing.T, r *rig, name string, change func(map[string]any)) (order, certificate string) {
	t.Helper()
	a := r.do(t, http.StatusCreated, "POST", dcBase+"/order/certificate/ssl_basic", dcOrder(t, r, name, change))
	require.NotContains(t, a.object(t), "status")
	if _, ok := a.object(t)["certificate_id"]; ok {
		certificate = a.text(t, "certificate_id")
	}
	return a.text(t, "id"), certificate
}

func dcStatus(t *testing.T, r *rig, order string) string {
	t.Helper()
	return r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+order, nil).text(t, "status")
}

func TestDigiCertTakesAnOrderAndIssuesItLater(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now, Scenario: casimulator.Scenario{Latency: time.Minute}}).digicert()
	id, certificate := dcSubmit(t, r, "example.com", nil)
	require.NotEmpty(t, certificate)

	truth := onlyOrder(t, r.sim)
	sum := sha256.Sum256(mustDecode(t, r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil).text(t, "certificate", "csr")))
	require.Equal(t, casimulator.Order{
		CA: "digicert", ID: id, Reference: "ref-example.com", CSRSHA256: hex.EncodeToString(sum[:]), CommonName: "example.com",
		DNSNames: []string{"example.com", "www.example.com"}, State: casimulator.Processing, Accepted: truth.Accepted, Billed: 1,
		Requests: []casimulator.Certificate{{
			ID: certificate, Kind: "new", Reference: "ref-example.com", CSRSHA256: truth.CSRSHA256, State: casimulator.Processing,
		}},
	}, truth)
	require.Equal(t, "processing", dcStatus(t, r, id))
	r.do(t, http.StatusBadRequest, "GET", dcBase+"/certificate/"+certificate+"/download/format/pem_all", nil)

	now.forward(time.Minute)
	info := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil)
	require.Equal(t, "issued", info.text(t, "status"))
	require.Equal(t, certificate, info.text(t, "certificate", "id"))
	require.Equal(t, "ref-example.com", info.text(t, "requests", 0, "comments"))
	truth = onlyOrder(t, r.sim)
	require.Equal(t, 1, truth.Certificates)
	require.Equal(t, []string{info.text(t, "certificate", "serial_number")}, truth.Serials)
	for _, by := range []string{"thumbprint", "serial_number"} {
		require.Equal(t, "issued", dcStatus(t, r, info.text(t, "certificate", by)), by)
	}
	require.Empty(t, r.sim.Violations())
}

func mustDecode(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	require.NotNil(t, block)
	return block.Bytes
}

func TestDigiCertHasEveryDocumentedFormat(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	a := r.do(t, http.StatusCreated, "POST", dcBase+"/order/certificate/ssl_basic", dcOrder(t, r, "example.com", nil))
	require.NotEmpty(t, a.get(t, "certificate_chain", 0, "pem"), "it was issued at once")
	path := dcBase + "/certificate/" + a.text(t, "certificate_id") + "/download/format/"

	all := r.do(t, http.StatusOK, "GET", path+"pem_all", nil)
	require.Equal(t, "application/x-pem-file", all.header.Get("Content-Type"))
	chain := certificates(t, all.body)
	require.Len(t, chain, 3)
	verified(t, chain, "www.example.com")
	require.Zero(t, chain[0].NotBefore.Sub(chain[0].NotBefore.Truncate(24*time.Hour)), "certificates begin at midnight")
	require.Len(t, certificates(t, r.do(t, http.StatusOK, "GET", path+"pem_noroot", nil).body), 2)
	require.Len(t, certificates(t, r.do(t, http.StatusOK, "GET", path+"pem_nointermediate", nil).body), 1)

	p7b := r.do(t, http.StatusOK, "GET", path+"p7b", nil)
	require.Equal(t, "application/x-pkcs7-certificates", p7b.header.Get("Content-Type"))
	bundle, err := pkcs7.Parse(mustDecode(t, string(p7b.body)))
	require.NoError(t, err)
	require.Len(t, bundle.Certificates, 3)

	for format, extension := range map[string]string{"default": ".crt", "apache": ".crt", "default_pem": ".pem", "default_cer": ".cer"} {
		zipped := r.do(t, http.StatusOK, "GET", path+format, nil)
		require.Equal(t, "application/zip", zipped.header.Get("Content-Type"))
		files, err := zip.NewReader(bytes.NewReader(zipped.body), int64(len(zipped.body)))
		require.NoError(t, err)
		require.Len(t, files.File, 3)
		f, err := files.Open("certs/example_com" + extension)
		require.NoError(t, err)
		text, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Equal(t, chain[0].Raw, certificates(t, text)[0].Raw)
	}
	byOrder := r.do(t, http.StatusOK, "GET", dcBase+"/certificate/download/order/"+a.text(t, "id")+"/format/pem_all", nil)
	require.Equal(t, all.body, byOrder.body)
	above := r.do(t, http.StatusOK, "GET", dcBase+"/certificate/"+a.text(t, "certificate_id")+"/chain", nil)
	require.Len(t, above.get(t, "intermediates"), 2)
	require.Empty(t, r.sim.Violations())
	r.do(t, http.StatusBadRequest, "GET", path+"pkcs12", nil)
}

func TestDigiCertOrderWaitsForTheAccountsApproval(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	id, certificate := dcSubmit(t, r, "example.com", func(b map[string]any) { b["skip_approval"] = false })
	require.Empty(t, certificate)
	info := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil)
	require.Equal(t, "needs_approval", info.text(t, "status"))
	require.NotContains(t, info.get(t, "certificate"), "id")
	request := info.text(t, "requests", 0, "id")
	require.Equal(t, "pending", r.do(t, http.StatusOK, "GET", dcBase+"/request/"+request, nil).text(t, "status"))
	pending := r.do(t, http.StatusOK, "GET", dcBase+"/request?filters[status]=pending", nil)
	require.Equal(t, "1", pending.text(t, "page", "total"))

	r.do(t, http.StatusNoContent, "PUT", dcBase+"/request/"+request+"/status", map[string]string{"status": "approved", "processor_comment": "fine"})
	require.Equal(t, "issued", dcStatus(t, r, id))
	require.Equal(t, "approved", r.do(t, http.StatusOK, "GET", dcBase+"/request/"+request, nil).text(t, "status"))
	require.Empty(t, r.sim.Violations())
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/request/"+request+"/status", map[string]string{"status": "rejected"})

	refused, _ := dcSubmit(t, r, "example.org", func(b map[string]any) { b["skip_approval"] = false })
	request = r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+refused, nil).text(t, "requests", 0, "id")
	r.do(t, http.StatusNoContent, "PUT", dcBase+"/request/"+request+"/status", map[string]string{"status": "rejected"})
	require.Equal(t, "rejected", dcStatus(t, r, refused))
}

func TestDigiCertReissueIsFreeAndUnderTheSameOrder(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	id, first := dcSubmit(t, r, "example.com", nil)
	r.sim.Set(casimulator.Fault{Operation: "reissue", Kind: casimulator.NeedsApproval, Times: 1})
	again := map[string]any{
		"certificate": map[string]any{"common_name": "example.com", "csr": csr(t, "example.com")}, "skip_approval": true, "comments": "ref-again",
	}
	a := r.do(t, http.StatusCreated, "POST", dcBase+"/order/certificate/"+id+"/reissue", again)
	second := a.text(t, "certificate_id")
	require.Equal(t, id, a.text(t, "id"))
	require.NotEqual(t, first, second)

	info := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil)
	require.Equal(t, "reissue_pending", info.text(t, "status"))
	require.Equal(t, first, info.text(t, "certificate", "id"), "the order stands for the certificate that is there")
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/certificate/"+first+"/revoke", map[string]any{"skip_approval": true})
	r.do(t, http.StatusBadRequest, "POST", dcBase+"/order/certificate/"+id+"/reissue", again)
	list := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id+"/reissue", nil)
	require.Equal(t, "pending", list.text(t, "certificates", 0, "status"))

	require.NoError(t, r.sim.Decide("digicert", id, "approve", ""))
	info = r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil)
	require.Equal(t, "issued", info.text(t, "status"))
	require.Equal(t, second, info.text(t, "certificate", "id"))
	truth := onlyOrder(t, r.sim)
	require.Equal(t, 1, truth.Billed)
	require.Equal(t, 2, truth.Certificates)
	require.Equal(t, "reissue", truth.Requests[1].Kind)
	require.Equal(t, "ref-again", truth.Requests[1].Reference)
	require.Equal(t, truth.Serials[1], truth.Requests[1].Serial)
	require.Empty(t, r.sim.Violations())
}

func TestDigiCertDuplicateLeavesTheFirstCertificateInCharge(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	id, first := dcSubmit(t, r, "example.com", nil)
	again := map[string]any{"certificate": map[string]any{"common_name": "example.com", "csr": csr(t, "example.com")}, "skip_approval": true}
	second := r.do(t, http.StatusCreated, "POST", dcBase+"/order/certificate/"+id+"/duplicate", again).text(t, "certificate_id")
	info := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil)
	require.Equal(t, first, info.text(t, "certificate", "id"))
	require.Equal(t, true, info.get(t, "has_duplicates"))
	list := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id+"/duplicate", nil)
	require.Equal(t, second, list.text(t, "certificates", 0, "id"))
	r.do(t, http.StatusNotFound, "GET", dcBase+"/order/certificate/"+list.text(t, "certificates", 0, "serial_number"), nil)
}

func TestDigiCertRenewalIsAnotherOrder(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	id, _ := dcSubmit(t, r, "example.com", nil)
	other, _ := dcSubmit(t, r, "example.com", func(b map[string]any) { b["renewal_of_order_id"] = jsonNumber(id) })
	require.NotEqual(t, id, other)
	require.Equal(t, true, r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil).get(t, "is_renewed"))
	renewed := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate?filters[is_renewed]=1", nil)
	require.Equal(t, "1", renewed.text(t, "page", "total"))
	require.Equal(t, id, renewed.text(t, "orders", 0, "id"))
}

func TestDigiCertCancelsWhatIsPending(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Approval: casimulator.Approval{Needed: true}}}).digicert()
	id, _ := dcSubmit(t, r, "example.com", nil)
	require.Equal(t, "pending", dcStatus(t, r, id))
	cancel := map[string]string{"status": "CANCELED", "note": "not wanted"}
	r.do(t, http.StatusNoContent, "PUT", dcBase+"/order/certificate/"+id+"/status", cancel)
	require.Equal(t, "canceled", dcStatus(t, r, id))
	require.Equal(t, casimulator.Cancelled, onlyOrder(t, r.sim).State)
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/order/certificate/"+id+"/status", cancel)
}

func TestDigiCertRevokesAtOnceOrWithApproval(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	id, certificate := dcSubmit(t, r, "example.com", nil)
	a := r.do(t, http.StatusCreated, "PUT", dcBase+"/certificate/"+certificate+"/revoke", map[string]any{"revocation_reason": "superseded", "comments": "c"})
	require.Equal(t, "revoke", a.text(t, "type"))
	require.Equal(t, "pending", a.text(t, "status"))
	require.Empty(t, onlyOrder(t, r.sim).Revoked, "nothing is revoked before the approval")
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/certificate/"+certificate+"/revoke", map[string]any{})
	r.do(t, http.StatusNoContent, "PUT", dcBase+"/request/"+a.text(t, "id")+"/status", map[string]string{"status": "approved"})
	truth := onlyOrder(t, r.sim)
	require.Equal(t, truth.Serials, truth.Revoked)
	require.Equal(t, "issued", dcStatus(t, r, id), "the order stays active")
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/certificate/"+certificate+"/revoke", map[string]any{"skip_approval": true})
	require.Empty(t, r.sim.Violations())

	id, _ = dcSubmit(t, r, "example.org", nil)
	serial := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+id, nil).text(t, "certificate", "serial_number")
	r.do(t, http.StatusNoContent, "PUT", dcBase+"/certificate/"+strings.ToLower(serial)+"/revoke", map[string]any{"skip_approval": true})

	id, _ = dcSubmit(t, r, "example.net", nil)
	r.do(t, http.StatusBadRequest, "PUT", dcBase+"/order/certificate/"+id+"/revoke", map[string]any{"revocation_reason": "nobody_knows"})
	r.do(t, http.StatusNoContent, "PUT", dcBase+"/order/certificate/"+id+"/revoke", map[string]any{"skip_approval": true})
	require.Equal(t, "revoked", dcStatus(t, r, id))
}

func TestDigiCertListsOrdersByFiltersAndInPages(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now, Scenario: casimulator.Scenario{Unlimited: true}}).digicert()
	var ids []string
	for i := range 5 {
		id, _ := dcSubmit(t, r, fmt.Sprintf("host%d.example.com", i), nil)
		ids = append(ids, id)
		now.forward(24 * time.Hour)
	}
	list := func(query string) (total string, found []string) {
		a := r.do(t, http.StatusOK, "GET", dcBase+"/order/certificate?"+query, nil)
		orders, ok := a.get(t, "orders").([]any)
		require.True(t, ok)
		for i := range orders {
			found = append(found, a.text(t, "orders", i, "id"))
		}
		return a.text(t, "page", "total"), found
	}
	first := now.Now().Add(-5 * 24 * time.Hour).UTC().Format("2006-01-02")
	second := now.Now().Add(-4 * 24 * time.Hour).UTC().Format("2006-01-02")
	for query, want := range map[string][]string{
		"filters[common_name]=host2.example.com":                 {ids[2]},
		"filters[domain_name]=www.host3.example.com":             {ids[3]},
		"filters[search]=host1":                                  {ids[1]},
		"filters[id]=" + ids[4]:                                  {ids[4]},
		"filters[status]=issued":                                 ids,
		"filters[status]=pending":                                nil,
		"sort=-date_created&limit=2":                             {ids[4], ids[3]},
		"sort=id&limit=2&offset=4":                               {ids[4]},
		"offset=9":                                               nil,
		"filters[date_created]=" + first:                         {ids[0]},
		"filters[date_created]=" + first + "..." + second:        {ids[0], ids[1]},
		"filters[date_created]=<" + second:                       {ids[0], ids[1]},
		"filters[common_name]=host2.example.com&sort=-id":        {ids[2]},
		"filters[product_name_id]=ssl_plus":                      nil,
		"filters[serial_number]=" + r.sim.Orders()[1].Serials[0]: {ids[1]},
	} {
		_, found := list(query)
		require.Equal(t, want, found, query)
	}
	total, _ := list("limit=1")
	require.Equal(t, "5", total)
	require.Empty(t, r.sim.Violations())
	r.do(t, http.StatusBadRequest, "GET", dcBase+"/order/certificate?filters[colour]=red", nil)
	r.do(t, http.StatusBadRequest, "GET", dcBase+"/order/certificate?limit=1001", nil)
	require.Len(t, r.sim.Violations(), 2)
}

func TestDigiCertTellsWhatChanged(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now, Scenario: casimulator.Scenario{Latency: time.Hour}}).digicert()
	id, _ := dcSubmit(t, r, "example.com", nil)
	path := dcBase + "/order/certificate/status-changes?"
	require.Equal(t, "processing", r.do(t, http.StatusOK, "GET", path+"minutes=5", nil).text(t, "orders", 0, "status"))
	now.forward(30 * time.Minute)
	require.JSONEq(t, "{}", string(r.do(t, http.StatusOK, "GET", path+"minutes=5", nil).body))
	now.forward(31 * time.Minute)
	a := r.do(t, http.StatusOK, "GET", path+"minutes=5&seconds=1", nil)
	require.Equal(t, "issued", a.text(t, "orders", 0, "status"))
	require.Equal(t, id, a.text(t, "orders", 0, "order_id"))
	day := now.Now().In(time.FixedZone("MDT", -6*60*60)).Format("2006-01-02")
	require.Equal(t, id, r.do(t, http.StatusOK, "GET", path+"filters[status_last_updated]="+day+"..."+day, nil).text(t, "orders", 0, "order_id"))
	require.Empty(t, r.sim.Violations())
	require.Equal(t, "time_frame_too_long", r.do(t, http.StatusBadRequest, "GET", path+"minutes=10081", nil).text(t, "errors", 0, "code"))
	r.do(t, http.StatusBadRequest, "GET", strings.TrimSuffix(path, "?"), nil)
}

func TestDigiCertHoldsItsRateLimits(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now}).digicert()
	probe := func(status int) answer { return r.do(t, status, "GET", dcBase+"/user/me", nil) }
	for range 10 {
		for range 100 {
			probe(http.StatusOK)
		}
		refused := probe(http.StatusTooManyRequests)
		require.Equal(t, "request_limit_exceeded", refused.text(t, "errors", 0, "code"))
		require.Empty(t, refused.header.Get("Retry-After"))
		now.forward(5 * time.Second)
	}
	require.Len(t, r.sim.Violations(), 10)
	probe(http.StatusTooManyRequests) // a thousand in three minutes
	now.forward(130 * time.Second)
	probe(http.StatusOK)
	r.sim.Play(casimulator.Scenario{Unlimited: true})
	for range 101 {
		probe(http.StatusOK)
	}
}

func TestDigiCertRefusesWhatItsAPIDoesNotHave(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	path := dcBase + "/order/certificate/ssl_basic"
	in := func(part string, key string, value any) func(map[string]any) {
		return func(b map[string]any) {
			if part == "" {
				b[key] = value
				return
			}
			m, ok := b[part].(map[string]any)
			require.True(t, ok)
			m[key] = value
		}
	}
	for name, c := range map[string]struct {
		change func(map[string]any)
		path   string
		status int
		code   string
	}{
		"field":        {in("", "validity", 1), path, 400, "bad_request_format"},
		"common name":  {in("certificate", "common_name", ""), path, 400, "missing_required_field|common_name"},
		"CSR":          {in("certificate", "csr", "none"), path, 400, "invalid_csr"},
		"hash":         {in("certificate", "signature_hash", "sha1"), path, 400, "invalid_signature_hash"},
		"organisation": {in("organization", "id", 1), path, 404, "not_found|organization"},
		"none":         {in("", "organization", nil), path, 400, "missing_required_field|organization"},
		"no validity":  {in("", "order_validity", nil), path, 400, "invalid_order_validity"},
		"too long":     {in("certificate", "cert_validity", map[string]int{"days": 200}), path, 400, "invalid_cert_validity"},
		"product":      {nil, dcBase + "/order/certificate/ssl_nothing", 404, "not_found|product"},
		"route":        {nil, dcBase + "/order/certificate", 405, "general_error"},
		"renewal":      {in("", "renewal_of_order_id", 5), path, 400, "invalid_renewal_of_order_id"},
	} {
		r.sim.Reset()
		a := r.do(t, c.status, "POST", c.path, dcOrder(t, r, "example.com", c.change))
		require.Equal(t, c.code, a.text(t, "errors", 0, "code"), name)
		require.Len(t, r.sim.Violations(), 1, name)
	}
	r.sim.Reset()
	wrong := r.with(map[string]string{"X-DC-DEVKEY": "other"})
	wrong.do(t, http.StatusUnauthorized, "GET", dcBase+"/user/me", nil)
	form := r.with(map[string]string{"X-DC-DEVKEY": r.sim.Credentials().DigiCertAPIKey, "Content-Type": "text/plain"})
	form.do(t, http.StatusBadRequest, "POST", path, dcOrder(t, r, "example.com", nil))
	r.do(t, http.StatusNotFound, "GET", dcBase+"/nothing", nil)
	require.Len(t, r.sim.Violations(), 3)
	require.Empty(t, r.sim.Orders())
	r.do(t, http.StatusNotFound, "GET", dcBase+"/order/certificate/12345", nil)
}

func TestDigiCertShowsWhatCanBeOrdered(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	organisation := fmt.Sprint(r.sim.Credentials().DigiCertOrganization)
	require.Equal(t, "active", r.do(t, http.StatusOK, "GET", dcBase+"/organization/"+organisation, nil).text(t, "status"))
	require.Equal(t, organisation, r.do(t, http.StatusOK, "GET", dcBase+"/organization", nil).text(t, "organizations", 0, "id"))
	require.Equal(t, "ssl_basic", r.do(t, http.StatusOK, "GET", dcBase+"/product/ssl_basic", nil).text(t, "name_id"))
	require.NotEmpty(t, r.do(t, http.StatusOK, "GET", dcBase+"/product", nil).get(t, "products"))
	require.Equal(t, "Administrator", r.do(t, http.StatusOK, "GET", dcBase+"/user/me", nil).text(t, "access_roles", 0, "name"))
	r.do(t, http.StatusNotFound, "GET", dcBase+"/organization/1", nil)
	r.do(t, http.StatusNotFound, "GET", dcBase+"/product/nothing", nil)
}

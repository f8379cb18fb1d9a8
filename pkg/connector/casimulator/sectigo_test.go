package casimulator_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

const sectigoBase = "/sectigo/api/ssl/v1"

func sectigoEnrolment(t *testing.T, r *rig, name string) map[string]any {
	t.Helper()
	c := r.sim.Credentials()
	return map[string]any{
		"orgId": c.SectigoOrganization, "csr": csr(t, name), "certType": c.SectigoCertType, "term": 90, "subjAltNames": "www." + name + ", ftp." + name,
		"comments": "ref-" + name, "numberServers": 1, "serverType": -1,
	}
}

func sectigoEnrol(t *testing.T, r *rig, name string) (sslID string) {
	t.Helper()
	a := r.do(t, http.StatusOK, "POST", sectigoBase+"/enroll", sectigoEnrolment(t, r, name))
	require.NotEmpty(t, a.text(t, "renewId"))
	return a.text(t, "sslId")
}

func sectigoState(t *testing.T, r *rig, sslID string) string {
	t.Helper()
	return r.do(t, http.StatusOK, "GET", sectigoBase+"/"+sslID, nil).text(t, "status")
}

func TestSectigoIsNotReadyUntilItIs(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now, Scenario: casimulator.Scenario{Latency: time.Minute}}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	require.Equal(t, "Applied", sectigoState(t, r, id))
	notReady := r.do(t, http.StatusBadRequest, "GET", sectigoBase+"/collect/"+id+"/x509", nil)
	require.JSONEq(t, `{"code":0,"description":"Being processed by Sectigo"}`, string(notReady.body))

	now.forward(time.Minute)
	detail := r.do(t, http.StatusOK, "GET", sectigoBase+"/"+id, nil)
	require.Equal(t, "Issued", detail.text(t, "status"))
	require.Equal(t, "ref-example.com", detail.text(t, "comments"))
	require.Regexp(t, `^\d\d/\d\d/\d{4}$`, detail.text(t, "expires"))
	truth := onlyOrder(t, r.sim)
	require.Equal(t, truth.Serials[0], strings.ReplaceAll(detail.text(t, "serialNumber"), ":", ""))
	require.Equal(t, 1, truth.Billed)
	require.Equal(t, "ref-example.com", truth.Reference)
	require.Equal(t, []string{"example.com", "www.example.com", "ftp.example.com"}, truth.DNSNames)
	require.Empty(t, r.sim.Violations())
}

func TestSectigoHasEveryFormat(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	collect := func(format string) []byte {
		inPath := r.do(t, http.StatusOK, "GET", sectigoBase+"/collect/"+id+"/"+format, nil).body
		inQuery := r.do(t, http.StatusOK, "GET", sectigoBase+"/collect/"+id+"?format="+format, nil).body
		require.Equal(t, inPath, inQuery)
		return inPath
	}
	leafFirst := certificates(t, collect("pemia"))
	require.Len(t, leafFirst, 3)
	verified(t, leafFirst, "ftp.example.com")
	leaf, intermediate, root := leafFirst[0], leafFirst[1], leafFirst[2]
	for format, want := range map[string][]*x509.Certificate{
		"pem": {root, intermediate, leaf}, "x509": {root, intermediate, leaf}, "x509R": {leaf, intermediate, root},
		"x509CO": {leaf}, "pemco": {leaf}, "x509IO": {root, intermediate}, "x509IOR": {intermediate, root},
	} {
		require.Equal(t, want, certificates(t, collect(format)), format)
	}
	block, _ := pem.Decode(collect("base64"))
	require.Equal(t, "PKCS7", block.Type)
	for _, der := range [][]byte{block.Bytes, collect("bin")} {
		bundle, err := pkcs7.Parse(der)
		require.NoError(t, err)
		require.Len(t, bundle.Certificates, 3)
	}
	require.Empty(t, r.sim.Violations())
	unknown := r.do(t, http.StatusBadRequest, "GET", sectigoBase+"/collect/"+id+"/jks", nil)
	require.Equal(t, "-1450", unknown.text(t, "code"))
}

func TestSectigoReplacementKeepsTheNumber(t *testing.T) {
	t.Parallel()
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	first := certificates(t, r.do(t, http.StatusOK, "GET", sectigoBase+"/collect/"+id+"/x509CO", nil).body)[0]
	r.sim.Play(casimulator.Scenario{Latency: time.Minute})
	r.do(t, http.StatusNoContent, "POST", sectigoBase+"/replace/"+id, map[string]any{
		"csr": csr(t, "example.com"), "reason": "new key", "commonName": "example.com", "subjectAlternativeNames": []string{"new.example.com"},
	})
	require.Equal(t, "Applied", sectigoState(t, r, id))
	r.do(t, http.StatusBadRequest, "GET", sectigoBase+"/collect/"+id+"/x509CO", nil)
	now.forward(time.Minute)
	second := certificates(t, r.do(t, http.StatusOK, "GET", sectigoBase+"/collect/"+id+"/x509CO", nil).body)[0]
	require.NotEqual(t, first.SerialNumber, second.SerialNumber)
	require.Equal(t, []string{"example.com", "new.example.com"}, second.DNSNames)
	truth := onlyOrder(t, r.sim)
	require.Equal(t, 1, truth.Billed)
	require.Equal(t, 2, truth.Certificates)
}

func TestSectigoRenewalIsAnotherNumber(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	renewID := r.do(t, http.StatusOK, "GET", sectigoBase+"/"+id, nil).text(t, "renewId")
	second := r.do(t, http.StatusOK, "POST", sectigoBase+"/renewById/"+id, map[string]any{}).text(t, "sslId")
	third := r.do(t, http.StatusOK, "POST", sectigoBase+"/renew/"+renewID, map[string]any{}).text(t, "sslId")
	require.Len(t, map[string]bool{id: true, second: true, third: true}, 3)
	require.Len(t, r.sim.Orders(), 3)
	r.do(t, http.StatusBadRequest, "POST", sectigoBase+"/renewById/"+id, map[string]any{"term": 90})
}

func TestSectigoRevokesByNumberAndBySerial(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	r.do(t, http.StatusNoContent, "POST", sectigoBase+"/revoke/"+id, map[string]any{"reasonCode": 4, "reason": "superseded"})
	require.Equal(t, "Revoked", sectigoState(t, r, id))
	again := r.do(t, http.StatusBadRequest, "POST", sectigoBase+"/revoke/"+id, map[string]any{"reasonCode": "4", "reason": "superseded"})
	require.Equal(t, "-102", again.text(t, "code"))

	other := sectigoEnrol(t, r, "example.org")
	serial := r.do(t, http.StatusOK, "GET", sectigoBase+"/"+other, nil).text(t, "serialNumber")
	r.do(t, http.StatusNoContent, "POST", sectigoBase+"/revoke/serial/"+serial, map[string]any{"reason": "old clients give only a text"})
	require.Equal(t, "Revoked", sectigoState(t, r, other))
	require.Empty(t, r.sim.Violations())
	r.do(t, http.StatusBadRequest, "POST", sectigoBase+"/revoke/"+other, map[string]any{"reasonCode": 2})
	require.Len(t, r.sim.Violations(), 1)
}

func TestSectigoWaitsForApproval(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Approval: casimulator.Approval{Needed: true}}}).sectigo()
	approved, declined, refused := sectigoEnrol(t, r, "a.example.com"), sectigoEnrol(t, r, "b.example.com"), sectigoEnrol(t, r, "c.example.com")
	require.Equal(t, "Requested", sectigoState(t, r, approved))
	r.do(t, http.StatusBadRequest, "GET", sectigoBase+"/collect/"+approved+"/x509", nil)
	r.do(t, http.StatusNoContent, "POST", sectigoBase+"/approve/"+approved, map[string]any{"message": "fine"})
	require.Equal(t, "Issued", sectigoState(t, r, approved))
	r.do(t, http.StatusNoContent, "POST", sectigoBase+"/decline/"+declined, map[string]any{"message": "no"})
	require.Equal(t, "Declined", sectigoState(t, r, declined))
	require.Equal(t, "-183", r.do(t, http.StatusBadRequest, "GET", sectigoBase+"/collect/"+declined+"/x509", nil).text(t, "code"))
	require.NoError(t, r.sim.Decide("sectigo", refused, "reject", "never"))
	require.Equal(t, "Declined", sectigoState(t, r, refused))
	require.Equal(t, "-1112", r.do(t, http.StatusBadRequest, "POST", sectigoBase+"/approve/"+approved, map[string]any{"message": "twice"}).text(t, "code"))

	r.sim.Set(casimulator.Fault{Kind: casimulator.Reject, Reason: "CAA"})
	r.sim.Play(casimulator.Scenario{Faults: []casimulator.Fault{{Kind: casimulator.Reject, Reason: "CAA"}}})
	require.Equal(t, "Rejected", sectigoState(t, r, sectigoEnrol(t, r, "d.example.com")))
}

func TestSectigoListsNamesAndNumbers(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	for i := range 5 {
		sectigoEnrol(t, r, fmt.Sprintf("host%d.example.com", i))
	}
	a := r.do(t, http.StatusOK, "GET", sectigoBase+"?size=2&position=3", nil)
	require.Equal(t, "5", a.header.Get("X-Total-Count"))
	require.Contains(t, string(a.body), "host3.example.com")
	require.NotContains(t, string(a.body), "host2.example.com")
	require.NotContains(t, string(a.body), "ref-")
	for query, total := range map[string]string{
		"commonName=host2.example.com": "1", "commonName=nothing": "0", "status=Issued": "5", "status=Requested": "0",
		"subjectAlternativeName=ftp.host1": "1", "serialNumber=" + r.sim.Orders()[4].Serials[0]: "1",
	} {
		require.Equal(t, total, r.do(t, http.StatusOK, "GET", sectigoBase+"?"+query, nil).header.Get("X-Total-Count"), query)
	}
	require.Empty(t, r.sim.Violations())
	r.do(t, http.StatusBadRequest, "GET", sectigoBase+"?colour=red", nil)
}

func TestSectigoChangesComments(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	id := sectigoEnrol(t, r, "example.com")
	a := r.do(t, http.StatusOK, "PUT", sectigoBase, map[string]any{"sslId": jsonNumber(id), "comments": "other"})
	require.Equal(t, "other", a.text(t, "comments"))
	require.Equal(t, "ref-example.com", onlyOrder(t, r.sim).Reference, "the truth is what was ordered")
}

func TestSectigoTakesAClientCertificateBelowPrivate(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{})
	c := r.sim.Credentials()
	private := r.with(map[string]string{"login": c.SectigoLogin, "customerUri": c.SectigoCustomerURI})
	private.do(t, http.StatusForbidden, "GET", "/sectigo/private/api/ssl/v1/types", nil)
	private.client = client(t, r.sim, true)
	private.do(t, http.StatusOK, "GET", "/sectigo/private/api/ssl/v1/types", nil)
	private.do(t, http.StatusUnauthorized, "GET", sectigoBase+"/types", nil)
}

func TestSectigoRefusesWhatItsAPIDoesNotHave(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).sectigo()
	for name, c := range map[string]struct {
		key   string
		value any
		code  string
	}{
		"unknown field": {"sans", "x", "-1601"},
		"profile":       {"certType", 1, "-39"},
		"term":          {"term", 91, "-36"},
		"organisation":  {"orgId", 1, "-37"},
		"CSR":           {"csr", "none", "-10"},
		"names":         {"subjAltNames", []string{"a"}, "-1601"},
	} {
		r.sim.Reset()
		body := sectigoEnrolment(t, r, "example.com")
		body[c.key] = c.value
		require.Equal(t, c.code, r.do(t, http.StatusBadRequest, "POST", sectigoBase+"/enroll", body).text(t, "code"), name)
		require.Len(t, r.sim.Violations(), 1, name)
	}
	wrong := r.with(map[string]string{"login": "x", "password": "y", "customerUri": "z"})
	require.Equal(t, "-16", wrong.do(t, http.StatusUnauthorized, "GET", sectigoBase+"/types", nil).text(t, "code"))
	require.Empty(t, r.sim.Orders())
	r.do(t, http.StatusNotFound, "GET", sectigoBase+"/12345", nil)
	types := r.do(t, http.StatusOK, "GET", sectigoBase+"/types?organizationId="+fmt.Sprint(r.sim.Credentials().SectigoOrganization), nil)
	require.Contains(t, string(types.body), `"terms":[30,90,199]`)
}

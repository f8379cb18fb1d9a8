package casimulator

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ecs is a client of Entrust Certificate Services, written from public clients of it.
type ecs struct {
	*rig
	user, key string
}

func newECS(t *testing.T) *ecs {
	t.Helper()
	r := newRig(t)
	return &ecs{r, r.sim.Credentials().EntrustECSUser, r.sim.Credentials().EntrustECSKey}
}

func (e *ecs) url(path string) string { return e.at.URL(EntrustECS) + "/enterprise/v2" + path }

func (e *ecs) header() http.Header {
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(e.user+":"+e.key))}}
}

func (e *ecs) order(csr []byte, names ...string) object {
	return object{
		"csr": csrPEM(csr), "certType": "UC_SSL", "clientId": 1, "eku": "SERVER_AND_CLIENT_AUTH", "signingAlg": "SHA-2",
		"certExpiryDate": e.now().Add(90 * 24 * time.Hour).UTC().Format(time.DateOnly), "subjectAltName": names,
		"tracking": object{
			"trackingInfo": "order-7", "requesterName": "certctl", "requesterEmail": "pki@example.com", "requesterPhone": "+1 555 0100",
		},
	}
}

// made is what an order answers.
type made struct {
	TrackingID    int      `json:"trackingId"`
	EndEntityCert string   `json:"endEntityCert"`
	ChainCerts    []string `json:"chainCerts"`
	SerialNumber  string   `json:"serialNumber"`
	ExpiresAfter  string   `json:"expiresAfter"`
}

func (e *ecs) submit(status int, body object) (out made) {
	e.t.Helper()
	e.must(status, http.MethodPost, e.url("/certificates"), e.header(), body).into(e.t, &out)
	return out
}

// shown is a certificate as GET and lists give it.
type shown struct {
	made
	Status         string `json:"status"`
	DN             string `json:"dn"`
	CertType       string `json:"certType"`
	CSR            string `json:"csr"`
	DeclineReason  string `json:"declineReason"`
	SubjectAltName []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"subjectAltName"`
	Tracking struct {
		TrackingInfo string `json:"trackingInfo"`
		Deactivated  bool   `json:"deactivated"`
	} `json:"tracking"`
}

func (e *ecs) get(id int) (out shown) {
	e.t.Helper()
	e.must(http.StatusOK, http.MethodGet, e.certificate(id, ""), e.header(), nil).into(e.t, &out)
	return out
}

func (e *ecs) certificate(id int, more string) string {
	return e.url("/certificates/" + strconv.Itoa(id) + more)
}

func (e *ecs) list(query string) (ids []int, total int) {
	e.t.Helper()
	var out struct {
		Summary struct {
			Total int `json:"total"`
		} `json:"summary"`
		Certificates []shown `json:"certificates"`
	}
	e.must(http.StatusOK, http.MethodGet, e.url("/certificates?"+query), e.header(), nil).into(e.t, &out)
	for _, c := range out.Certificates {
		ids = append(ids, c.TrackingID)
	}
	return ids, out.Summary.Total
}

func TestECSMakesACertificateAtOnce(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	e.client = clientOf(t, e.sim, false)
	key, csr := newCSR(t, "www.example.com", "ignored.example.com")
	got := e.submit(http.StatusCreated, e.order(csr, "www.example.com", "example.com"))
	certificate := parseOne(t, got.EndEntityCert)
	require.True(t, key.PublicKey.Equal(certificate.PublicKey))
	require.Equal(t, []string{"www.example.com", "example.com"}, certificate.DNSNames)
	require.Equal(t, []string{"Example Inc"}, certificate.Subject.Organization)
	require.Equal(t, fmt.Sprintf("%X", certificate.SerialNumber), got.SerialNumber)
	require.Equal(t, certificate.NotAfter.Format("2006-01-02T15:04:05Z"), got.ExpiresAfter)
	require.Len(t, got.ChainCerts, 3)
	require.Equal(t, got.EndEntityCert, got.ChainCerts[0], "the certificate is the first of its chain")

	seen := e.get(got.TrackingID)
	require.Equal(t, "ACTIVE", seen.Status)
	require.Equal(t, "order-7", seen.Tracking.TrackingInfo)
	require.Equal(t, got.EndEntityCert, seen.EndEntityCert)
	require.Equal(t, csrPEM(csr), seen.CSR)
	require.Equal(t, "dNSName", seen.SubjectAltName[0].Type)
	require.Equal(t, "order-7", e.sim.Orders()[0].Reference)
	require.Empty(t, e.sim.Violations())
}

func TestECSValidatesWithoutOrdering(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	_, csr := newCSR(t, "www.example.com")
	e.must(http.StatusOK, http.MethodPost, e.url("/certificates"), e.header(), and(e.order(csr), "validateOnly", true))
	e.must(http.StatusOK, http.MethodPost, e.url("/certificates"), e.header(), and(e.order(csr), "validateOnly", "true"))
	e.must(http.StatusBadRequest, http.MethodPost, e.url("/certificates"), e.header(), and(without(e.order(csr), "tracking"), "validateOnly", true))
	require.Empty(t, e.sim.Orders())
}

func TestECSQueuesForApprovalThroughARestart(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	e.sim.Play(Scenario{Latency: time.Hour})
	_, csr := newCSR(t, "www.example.com")
	got := e.submit(http.StatusAccepted, and(e.order(csr), "queueForApproval", true))
	require.Empty(t, got.EndEntityCert)
	e.restart()
	e.pass(48 * time.Hour)
	require.Equal(t, "PENDING", e.get(got.TrackingID).Status)
	ids, _ := e.list("status=PENDING")
	require.Equal(t, []int{got.TrackingID}, ids)

	e.must(http.StatusOK, http.MethodPatch, e.certificate(got.TrackingID, ""), e.header(), object{"operation": "APPROVE"})
	e.restart()
	require.Equal(t, "APPROVED", e.get(got.TrackingID).Status)
	_, total := e.list("")
	require.Zero(t, total, "what is approved and not made is in no list")
	e.pass(time.Hour)
	seen := e.get(got.TrackingID)
	require.Equal(t, "ACTIVE", seen.Status)
	parseOne(t, seen.EndEntityCert)
	e.must(http.StatusBadRequest, http.MethodPatch, e.certificate(got.TrackingID, ""), e.header(), object{"operation": "APPROVE"})

	got = e.submit(http.StatusAccepted, and(e.order(csr), "queueForApproval", true))
	e.must(http.StatusBadRequest, http.MethodPatch, e.certificate(got.TrackingID, ""), e.header(), object{"operation": "CANCEL"})
	e.must(http.StatusOK, http.MethodPatch, e.certificate(got.TrackingID, ""), e.header(), object{"operation": "DECLINE", "declineReason": "not ours"})
	require.Equal(t, "DECLINED", e.get(got.TrackingID).Status)
	require.Equal(t, "not ours", e.get(got.TrackingID).DeclineReason)
	ids, _ = e.list("status=DECLINED")
	require.Empty(t, ids)
}

func TestECSRefusesWhatIsWrong(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	_, csr := newCSR(t, "www.example.com")
	good := e.order(csr, "www.example.com")
	tracking := good["tracking"].(object) //nolint:forcetypeassert // it was written above
	tests := map[string]struct {
		body    object
		message string
	}{
		"no CSR":                   {without(good, "csr"), "csr is required"},
		"no base64":                {and(good, "csr", "?"), "not base64"},
		"no type":                  {without(good, "certType"), "certType"},
		"another type":             {and(good, "certType", "DV_SSL"), "certType"},
		"another client":           {and(good, "clientId", 9), "clientId 9"},
		"a client not approved":    {and(good, "clientId", 2), "clientId 2"},
		"another organisation":     {and(good, "org", "Nobody"), "org"},
		"an organisation pending":  {and(good, "org", "Example Unverified GmbH"), "org"},
		"another usage":            {and(good, "eku", "serverAuth"), "eku"},
		"another algorithm":        {and(good, "signingAlg", "SHA256"), "signingAlg"},
		"no expiry":                {without(good, "certExpiryDate"), "certExpiryDate"},
		"two expiries":             {and(good, "certLifetime", "P1Y"), "certExpiryDate"},
		"a bad date":               {and(good, "certExpiryDate", "31.12.2026"), "RFC 3339"},
		"a late date":              {and(good, "certExpiryDate", "2099-01-01"), "would end"},
		"a past date":              {and(good, "certExpiryDate", "2020-01-01"), "would end"},
		"a bad lifetime":           {and(without(good, "certExpiryDate"), "certLifetime", "P90D"), "certLifetime"},
		"no tracking":              {without(good, "tracking"), "tracking"},
		"no requester":             {and(good, "tracking", without(tracking, "requesterPhone")), "requesterPhone"},
		"a bad address":            {and(good, "tracking", and(tracking, "requesterEmail", "pki")), "requesterEmail"},
		"a wildcard":               {and(good, "subjectAltName", []string{"*.example.com"}), "wildcards"},
		"an address":               {and(good, "subjectAltName", []string{"192.0.2.1"}), "IP addresses"},
		"a bad name":               {and(good, "subjectAltName", []string{"a b"}), "not a domain name"},
		"too many for STANDARD":    {and(and(good, "certType", "STANDARD_SSL"), "subjectAltName", []string{"mail.example.com"}), "STANDARD_SSL"},
		"too many for ADVANTAGE":   {and(and(good, "certType", "ADVANTAGE_SSL"), "subjectAltName", []string{"a.example.com", "b.example.com"}), "ADVANTAGE_SSL"},
		"what is for S/MIME":       {and(good, "cn", "Nobody"), "not for UC_SSL"},
		"an unknown field":         {and(good, "orderId", "1"), "unknown field"},
		"a number as text":         {and(good, "clientId", "1"), "clientId"},
		"a truth that is not such": {and(good, "ctLog", "perhaps"), "invalid character"},
	}
	for name, test := range tests {
		a := e.must(http.StatusBadRequest, http.MethodPost, e.url("/certificates"), e.header(), test.body)
		var out struct {
			Status int `json:"status"`
			Errors []struct {
				Message string `json:"message"`
			} `json:"errors"`
		}
		a.into(t, &out)
		require.Equal(t, http.StatusBadRequest, out.Status, name)
		require.NotEmpty(t, out.Errors, name)
		require.Contains(t, out.Errors[0].Message, test.message, name)
		require.Contains(t, e.lastViolation(), test.message, name)
	}
	require.Empty(t, e.sim.Orders())
	e.submit(http.StatusCreated, and(and(good, "certType", "STANDARD_SSL"), "subjectAltName", []string{"example.com"}))
	e.submit(http.StatusCreated, and(and(good, "certType", "WILDCARD_SSL"), "subjectAltName", []string{"*.example.com"}))
	e.submit(http.StatusCreated, and(good, "csr", base64.StdEncoding.EncodeToString(csr)))
	e.submit(http.StatusCreated, and(without(good, "certExpiryDate"), "certLifetime", "P1Y"))
}

func TestECSTakesADateAsThatOfTheEasternUnitedStates(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	_, csr := newCSR(t, "www.example.com")
	day := e.now().UTC().Add(60 * 24 * time.Hour).Truncate(24 * time.Hour)
	got := e.submit(http.StatusCreated, and(e.order(csr), "certExpiryDate", day.Add(2*time.Hour).Format(time.RFC3339)))
	require.Equal(t, day.Add(-time.Second).Format(time.RFC3339), got.ExpiresAfter, "two o'clock UTC is the day before there")
}

func TestECSRefusesAWrongUserOrKey(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	require.Contains(t, string(e.must(http.StatusOK, http.MethodGet, e.url("/application/version"), e.header(), nil).body), "version")
	for _, pair := range [][2]string{{"", ""}, {"simulator", "wrong"}, {"wrong", e.key}} {
		bad := &ecs{e.rig, pair[0], pair[1]}
		a := e.must(http.StatusUnauthorized, http.MethodGet, e.url("/application/version"), bad.header(), nil)
		require.Contains(t, a.header.Get("WWW-Authenticate"), "Basic")
		require.Contains(t, string(a.body), `"status":401`)
		require.Contains(t, e.lastViolation(), "user or key")
	}
	e.must(http.StatusUnauthorized, http.MethodGet, e.url("/certificates"), nil, nil)
}

func TestECSListsByPagesAndFilters(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	var all []int
	var serial string
	for i := range 5 {
		_, csr := newCSR(t, fmt.Sprintf("host-%d.example.com", i))
		got := e.submit(http.StatusCreated, e.order(csr))
		all = append(all, got.TrackingID)
		serial = got.SerialNumber
	}
	ids, total := e.list("limit=2&offset=2")
	require.Equal(t, all[2:4], ids)
	require.Equal(t, 5, total)
	ids, _ = e.list("limit=1000&sort=-trackingId")
	require.Equal(t, all[4], ids[0])
	ids, _ = e.list("serialNumber=" + serial)
	require.Equal(t, all[4:], ids)
	ids, _ = e.list("dn=con:HOST-3&fields=*&status=in:ACTIVE,PENDING")
	require.Equal(t, all[3:4], ids)
	ids, _ = e.list("subjectAltName=host-1.example.com&certType=UC_SSL")
	require.Equal(t, all[1:2], ids)
	ids, total = e.list("offset=7")
	require.Empty(t, ids)
	require.Equal(t, 5, total)
	e.sim.Set(Fault{CA: EntrustECS, Operation: "list", Kind: Forgotten, Delay: time.Minute})
	_, total = e.list("")
	require.Zero(t, total, "the list is a minute late")
	e.pass(time.Minute)
	_, total = e.list("")
	require.Equal(t, 5, total)
	e.sim.Set(Fault{CA: EntrustECS, Operation: "list", Kind: Forgotten, Times: 1})
	_, total = e.list("")
	require.Zero(t, total)
	for _, bad := range []string{"limit=1001", "limit=0", "offset=-1", "trackingInfo=order-7", "sort=dn"} {
		e.must(http.StatusBadRequest, http.MethodGet, e.url("/certificates?"+bad), e.header(), nil)
	}
}

func TestECSRenewsAndReissuesUnderNewNumbers(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	_, csr := newCSR(t, "www.example.com")
	first := e.submit(http.StatusCreated, e.order(csr, "example.com"))
	key, other := newCSR(t, "www.example.com")

	var second made
	e.must(http.StatusCreated, http.MethodPost, e.certificate(first.TrackingID, "/reissues"), e.header(),
		object{"csr": csrPEM(other), "subjectAltName": []string{"example.com"}}).into(t, &second)
	require.NotEqual(t, first.TrackingID, second.TrackingID)
	certificate := parseOne(t, second.EndEntityCert)
	require.True(t, key.PublicKey.Equal(certificate.PublicKey))
	require.Equal(t, first.ExpiresAfter, second.ExpiresAfter, "a re-issue ends when the original does")
	require.Equal(t, "REISSUED", e.get(first.TrackingID).Status)
	require.Equal(t, []string{first.SerialNumber}, e.sim.Orders()[0].Revoked)
	require.Equal(t, "order-7", e.get(second.TrackingID).Tracking.TrackingInfo, "what is not said is as it was")

	renew := e.certificate(second.TrackingID, "/renewals")
	body := object{"certExpiryDate": e.now().Add(180 * 24 * time.Hour).UTC().Format(time.DateOnly)}
	require.Contains(t, string(e.must(http.StatusBadRequest, http.MethodPost, renew, e.header(), body).body), "30 days")
	e.pass(31 * 24 * time.Hour)
	e.must(http.StatusBadRequest, http.MethodPost, renew, e.header(), and(body, "certType", "UC_SSL"))
	e.sim.Set(Fault{CA: EntrustECS, Operation: "renew", Kind: NeedsApproval})
	var third made
	e.must(http.StatusAccepted, http.MethodPost, renew, e.header(), body).into(t, &third)
	require.Equal(t, "RENEWING", e.get(second.TrackingID).Status)
	require.NoError(t, e.sim.Decide(EntrustECS, strconv.Itoa(third.TrackingID), "approve", ""))
	require.Equal(t, "RENEWED", e.get(second.TrackingID).Status)
	certificate = parseOne(t, e.get(third.TrackingID).EndEntityCert)
	require.True(t, key.PublicKey.Equal(certificate.PublicKey), "without a CSR the key stays")
	require.Equal(t, []string{"www.example.com", "example.com"}, certificate.DNSNames)

	orders := e.sim.Orders()
	require.Len(t, orders, 3)
	require.Equal(t, []int{1, 0, 1}, []int{orders[0].Billed, orders[1].Billed, orders[2].Billed})
	e.must(http.StatusBadRequest, http.MethodPost, e.certificate(first.TrackingID, "/reissues"), e.header(), object{})
}

func TestECSRevokesSuspendsAndDeactivates(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	_, csr := newCSR(t, "www.example.com")
	id := e.submit(http.StatusCreated, e.order(csr)).TrackingID
	patch := func(status int, operation string) {
		e.must(status, http.MethodPatch, e.certificate(id, ""), e.header(), object{"operation": operation})
	}
	patch(http.StatusOK, "SUSPEND")
	require.Equal(t, "SUSPENDED", e.get(id).Status)
	patch(http.StatusBadRequest, "SUSPEND")
	patch(http.StatusOK, "UNSUSPEND")

	revoke := e.certificate(id, "/revocations")
	e.must(http.StatusBadRequest, http.MethodPost, revoke, e.header(), object{"crlReason": "superseded"})
	require.Contains(t, e.lastViolation(), "superseded")
	e.must(http.StatusBadRequest, http.MethodPost, revoke, e.header(), object{"reason": "unspecified"})
	require.Empty(t, e.must(http.StatusOK, http.MethodPost, revoke, e.header(), object{"crlReason": "keyCompromise", "revocationComment": "test"}).body)
	require.Equal(t, "REVOKED", e.get(id).Status)
	e.must(http.StatusBadRequest, http.MethodPost, revoke, e.header(), object{"crlReason": "keyCompromise"})
	e.must(http.StatusNotFound, http.MethodPost, e.certificate(7, "/revocations"), e.header(), object{"crlReason": "keyCompromise"})

	id = e.submit(http.StatusCreated, e.order(csr)).TrackingID
	e.must(http.StatusOK, http.MethodPost, e.certificate(id, "/deactivations"), e.header(), nil)
	require.Equal(t, "DEACTIVATED", e.get(id).Status)
	require.True(t, e.get(id).Tracking.Deactivated)
	e.must(http.StatusBadRequest, http.MethodPost, e.certificate(id, "/deactivations"), e.header(), nil)

	id = e.submit(http.StatusCreated, e.order(csr)).TrackingID
	e.pass(91 * 24 * time.Hour)
	require.Equal(t, "EXPIRED", e.get(id).Status)
}

func TestECSKnowsItsOrganizations(t *testing.T) {
	t.Parallel()
	e := newECS(t)
	var out struct {
		Organizations []struct {
			Name   string `json:"name"`
			Status string `json:"verificationStatus"`
			Client int    `json:"clientId"`
		} `json:"organizations"`
	}
	e.must(http.StatusOK, http.MethodGet, e.url("/organizations"), e.header(), nil).into(t, &out)
	require.Equal(t, "Example Inc", out.Organizations[0].Name)
	require.Equal(t, "APPROVED", out.Organizations[0].Status)
	require.Equal(t, 1, out.Organizations[0].Client)
	require.Contains(t, string(e.must(http.StatusOK, http.MethodGet, e.url("/clients"), e.header(), nil).body), "clientId")
	_, csr := newCSR(t, "www.example.com")
	e.submit(http.StatusCreated, and(e.order(csr), "org", "Example Subsidiary Ltd"))
	require.Contains(t, string(e.must(http.StatusOK, http.MethodGet, e.url("/inventories"), e.header(), nil).body), `"productType":"UC_SSL","totalCount":1000000,"remainingCount":999999`)
}

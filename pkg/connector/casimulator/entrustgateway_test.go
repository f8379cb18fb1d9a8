package casimulator

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cagw is a client of CA Gateway, written from Entrust's own clients.
type cagw struct{ *rig }

func newCAGW(t *testing.T) *cagw { t.Helper(); return &cagw{newRig(t)} }

func (g *cagw) url(path string) string {
	return g.at.URL(EntrustGateway) + "/v1/certificate-authorities/" + url.PathEscape(g.sim.Credentials().EntrustGatewayCA) + path
}

func (g *cagw) order(csr []byte, names ...string) object {
	sans := make([]object, len(names))
	for i, n := range names {
		sans[i] = object{"type": "dNSName", "value": n}
	}
	return object{
		"profileId": g.sim.Credentials().EntrustGatewayProfile, "requiredFormat": object{"format": "X509"},
		"csr": base64.StdEncoding.EncodeToString(csr), "subjectVariables": []object{{"type": "cn", "value": names[0]}},
		"subjectAltNames": sans, "properties": object{"tracking.trackingInfo": "order-7"},
	}
}

// enrolled is an EnrollmentResponse.
type enrolled struct {
	Type       string `json:"type"`
	Enrollment struct {
		ID           string `json:"id"`
		Status       string `json:"status"`
		SerialNumber string `json:"serialNumber"`
		Body         string `json:"body"`
		Chain        []struct {
			Data string `json:"certificateData"`
		} `json:"chain"`
		Properties map[string]string `json:"properties"`
	} `json:"enrollment"`
	Message struct {
		Message string `json:"message"`
	} `json:"message"`
}

func (g *cagw) enroll(status int, body object) (out enrolled) {
	g.t.Helper()
	g.must(status, http.MethodPost, g.url("/enrollments"), nil, body).into(g.t, &out)
	require.Equal(g.t, "EnrollmentResponse", out.Type)
	return out
}

func (g *cagw) poll(id string) (out enrolled) {
	g.t.Helper()
	g.must(http.StatusOK, http.MethodGet, g.url("/enrollments/"+id), nil, nil).into(g.t, &out)
	return out
}

// gatewayProblemBody is an ErrorResponse.
type gatewayProblemBody struct {
	Type  string `json:"type"`
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Target  string `json:"target"`
	} `json:"error"`
}

func parseDER(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(text)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func TestCAGatewayEnrolsAtOnce(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	key, csr := newCSR(t, "ignored.example.com", "ignored.example.com")
	body := g.order(csr, "www.example.com", "example.com")
	body["includeCa"] = true
	body["optionalCertificateRequestDetails"] = object{"validityPeriod": "P0Y0M30D", "useSANFromCSR": false}
	got := g.enroll(http.StatusOK, body)
	require.Equal(t, "COMPLETED", got.Enrollment.Status)
	require.Equal(t, "order-7", got.Enrollment.Properties["tracking.trackingInfo"])
	certificate := parseDER(t, got.Enrollment.Body)
	require.True(t, key.PublicKey.Equal(certificate.PublicKey))
	require.Equal(t, "www.example.com", certificate.Subject.CommonName)
	require.Equal(t, []string{"www.example.com", "example.com"}, certificate.DNSNames)
	require.WithinDuration(t, g.now().Add(30*24*time.Hour), certificate.NotAfter, time.Minute)
	require.Equal(t, strings.ToLower(formatSerial(certificate.SerialNumber)), got.Enrollment.SerialNumber)
	var chain []*x509.Certificate
	for _, c := range got.Enrollment.Chain {
		chain = append(chain, parseDER(t, c.Data))
	}
	require.Len(t, chain, 2)
	requireChain(t, certificate, chain, g.now())
	require.Empty(t, g.sim.Violations())
	require.Equal(t, "order-7", g.sim.Orders()[0].Reference)

	body = without(body, "includeCa")
	body["requiredFormat"] = object{"format": "PEM"}
	got = g.enroll(http.StatusOK, body)
	parseOne(t, got.Enrollment.Body)
	require.Empty(t, got.Enrollment.Chain)
}

func TestCAGatewayAcceptsAndIssuesAfterApprovalAndARestart(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	g.sim.Play(Scenario{Approval: Approval{Needed: true}, Latency: time.Hour})
	key, csr := newCSR(t, "")
	got := g.enroll(http.StatusCreated, g.order(csr, "www.example.com"))
	require.Equal(t, "ACCEPTED", got.Enrollment.Status)
	require.Empty(t, got.Enrollment.Body)
	require.Empty(t, got.Enrollment.SerialNumber)
	id := got.Enrollment.ID

	g.restart()
	require.Equal(t, "ACCEPTED", g.poll(id).Enrollment.Status)
	g.must(http.StatusOK, http.MethodPost, "http://"+g.at.Control+"/control/v1/orders/"+id+"/approve", nil, nil)
	g.restart()
	require.Equal(t, "ACCEPTED", g.poll(id).Enrollment.Status)
	g.pass(time.Hour)
	got = g.poll(id)
	require.Equal(t, "COMPLETED", got.Enrollment.Status)
	certificate := parseDER(t, got.Enrollment.Body)
	require.True(t, key.PublicKey.Equal(certificate.PublicKey))
	g.restart()
	require.Equal(t, got.Enrollment.Body, g.poll(id).Enrollment.Body)

	_, csr = newCSR(t, "")
	g.sim.Play(Scenario{Approval: Approval{Needed: true}})
	id = g.enroll(http.StatusCreated, g.order(csr, "other.example.com")).Enrollment.ID
	require.NoError(t, g.sim.Decide(EntrustGateway, id, "reject", "not ours"))
	got = g.poll(id)
	require.Equal(t, "REJECTED", got.Enrollment.Status)
	require.Equal(t, "not ours", got.Message.Message)
	g.must(http.StatusNotFound, http.MethodGet, g.url("/enrollments/1"), nil, nil)
}

func TestCAGatewayRefusesWhatIsWrong(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	_, csr := newCSR(t, "")
	good := g.order(csr, "www.example.com")
	tests := map[string]struct {
		body   object
		target string
	}{
		"no profile":        {without(good, "profileId"), "profileId"},
		"another profile":   {and(good, "profileId", "smime"), "profileId"},
		"no format":         {without(good, "requiredFormat"), "requiredFormat.format"},
		"PKCS12":            {and(good, "requiredFormat", object{"format": "PKCS12"}), "requiredFormat.format"},
		"no CSR":            {without(good, "csr"), "csr"},
		"a PEM CSR":         {and(good, "csr", csrPEM(csr)), "csr"},
		"a CSR in lines":    {and(good, "csr", "AAAA\nAAAA"), "csr"},
		"no name":           {without(good, "subjectVariables"), "subjectVariables"},
		"another variable":  {and(good, "subjectVariables", []object{{"type": "mail", "value": "x"}}), "subjectVariables"},
		"another SAN type":  {and(good, "subjectAltNames", []object{{"type": "DNS", "value": "x.example"}}), "subjectAltNames"},
		"an address as DNS": {and(good, "subjectAltNames", []object{{"type": "dNSName", "value": "192.0.2.1"}}), "subjectAltNames"},
		"another property":  {and(good, "properties", object{"orderId": "1"}), "properties"},
		"a bad DN":          {and(good, "optionalCertificateRequestDetails", object{"subjectDn": "www.example.com"}), "optionalCertificateRequestDetails.subjectDn"},
		"a bad period":      {and(good, "optionalCertificateRequestDetails", object{"validityPeriod": "90d"}), "optionalCertificateRequestDetails.validityPeriod"},
		"a long period":     {and(good, "optionalCertificateRequestDetails", object{"validityPeriod": "P9Y"}), "optionalCertificateRequestDetails.validityPeriod"},
		"a period that was": {
			and(good, "optionalCertificateRequestDetails", object{"validityPeriod": "2020-01-01T00:00:00Z/2020-02-01T00:00:00Z"}),
			"optionalCertificateRequestDetails.validityPeriod",
		},
	}
	for name, test := range tests {
		var out gatewayProblemBody
		g.must(http.StatusBadRequest, http.MethodPost, g.url("/enrollments"), nil, test.body).into(t, &out)
		require.Equal(t, "ErrorResponse", out.Type, name)
		require.Equal(t, test.target, out.Error.Target, name)
		require.NotEmpty(t, out.Error.Code, name)
		require.Contains(t, g.lastViolation(), test.target, name)
	}
	g.must(http.StatusBadRequest, http.MethodPost, g.url("/enrollments"), nil, and(good, "trackingId", "x"))
	require.Contains(t, g.lastViolation(), "unknown field")
	g.must(http.StatusBadRequest, http.MethodPost, g.url("/enrollments"), http.Header{"Content-Type": {"text/plain"}}, good)
	require.Contains(t, g.lastViolation(), "content type")
	elsewhere := strings.Replace(g.url("/profiles"), "simulator~ca", "simulator~other", 1)
	g.must(http.StatusNotFound, http.MethodGet, elsewhere, nil, nil)
	require.Empty(t, g.sim.Orders())

	g.client = clientOf(t, g.sim, false)
	var out gatewayProblemBody
	g.must(http.StatusForbidden, http.MethodPost, g.url("/enrollments"), nil, good).into(t, &out)
	require.Contains(t, out.Error.Message, "client certificate")
}

func TestCAGatewayShowsItsCAAndItsProfiles(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	type ca struct {
		CA struct {
			ID          string `json:"id"`
			Certificate *struct {
				Data string `json:"certificateData"`
			} `json:"certificate"`
			Chain []struct {
				Data string `json:"certificateData"`
			} `json:"chain"`
		} `json:"ca"`
	}
	var plain, full ca
	g.must(http.StatusOK, http.MethodGet, g.url(""), nil, nil).into(t, &plain)
	require.Equal(t, "simulator~ca", plain.CA.ID)
	require.Nil(t, plain.CA.Certificate, "certificates come only when the fields are named")
	escaped := strings.Replace(g.url("?%24fields=ca.certificate,ca.chain"), "~", "%7E", 1)
	g.must(http.StatusOK, http.MethodGet, escaped, nil, nil).into(t, &full)
	require.Equal(t, "CA Simulator Intermediate", parseDER(t, full.CA.Certificate.Data).Subject.CommonName)
	require.Len(t, full.CA.Chain, 2)
	require.Equal(t, "CA Simulator Root", parseDER(t, full.CA.Chain[1].Data).Subject.CommonName)

	var one struct {
		Profile struct {
			ID        string `json:"id"`
			Variables []struct {
				Name     string `json:"name"`
				Required bool   `json:"required"`
			} `json:"subjectVariableRequirements"`
		} `json:"profile"`
	}
	g.must(http.StatusOK, http.MethodGet, g.url("/profiles/tls-server"), nil, nil).into(t, &one)
	require.Equal(t, "tls-server", one.Profile.ID)
	require.True(t, one.Profile.Variables[0].Required)
	g.must(http.StatusNotFound, http.MethodGet, g.url("/profiles/none"), nil, nil)
	require.Contains(t, string(g.must(http.StatusOK, http.MethodGet, g.url("/profiles"), nil, nil).body), "tls-client-server")
	require.Contains(t, string(g.must(http.StatusOK, http.MethodGet, strings.TrimSuffix(g.url(""), "/simulator~ca"), nil, nil).body), "simulator~ca")
}

func TestCAGatewayRevokesHoldsAndTakesBack(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	_, csr := newCSR(t, "")
	serial := g.enroll(http.StatusOK, g.order(csr, "www.example.com")).Enrollment.SerialNumber
	target := func() string { return g.url("/certificates/000" + strings.ToUpper(serial)) }
	status := func() (status, reason string) {
		var out struct {
			Certificate struct {
				Status string `json:"status"`
				Serial string `json:"serialNumber"`
				Info   struct {
					Reason string `json:"reason"`
				} `json:"revocationInfo"`
			} `json:"certificate"`
		}
		g.must(http.StatusOK, http.MethodGet, target(), nil, nil).into(t, &out)
		require.Equal(t, serial, out.Certificate.Serial)
		return out.Certificate.Status, out.Certificate.Info.Reason
	}
	act := func(code int, action object) string {
		var out struct {
			Type   string `json:"type"`
			Action struct {
				ID     string `json:"id"`
				Status string `json:"status"`
			} `json:"action"`
		}
		g.must(code, http.MethodPost, target()+"/actions", nil, object{"action": action}).into(t, &out)
		return out.Action.Status
	}
	require.Equal(t, "COMPLETED", act(http.StatusOK, object{"type": "HoldAction"}))
	held, _ := status()
	require.Equal(t, "hold", held)
	require.Equal(t, "COMPLETED", act(http.StatusOK, object{"type": "UnholdAction"}))
	normal, _ := status()
	require.Equal(t, "normal", normal)

	act(http.StatusBadRequest, object{"type": "Revoke", "reason": "superseded"})
	act(http.StatusBadRequest, object{"type": "RevokeAction", "reason": "SUPERSEDED"})
	act(http.StatusBadRequest, object{"type": "RevokeAction", "issueCrl": "perhaps"})
	act(http.StatusNotImplemented, object{"type": "ReactivateAction"})

	g.sim.Set(Fault{CA: EntrustGateway, Operation: "revoke", Kind: NeedsApproval, Times: 1})
	require.Equal(t, "ACCEPTED", act(http.StatusAccepted, object{"type": "RevokeAction", "reason": "superseded", "issueCrl": "true"}))
	normal, _ = status()
	require.Equal(t, "normal", normal, "nothing is revoked before somebody approves")
	g.restart()
	require.NoError(t, g.sim.Decide(EntrustGateway, g.sim.Orders()[0].ID, "approve", ""))
	revoked, reason := status()
	require.Equal(t, "revoked", revoked)
	require.Equal(t, "superseded", reason)
	require.Equal(t, "COMPLETED", act(http.StatusOK, object{"type": "RevokeAction", "reason": "superseded"}))
	act(http.StatusBadRequest, object{"type": "RevokeAction", "succeedIfAlreadyInRequestedState": false})
	g.must(http.StatusNotFound, http.MethodPost, g.url("/certificates/1234/actions"), nil, object{"action": object{"type": "RevokeAction"}})
	g.must(http.StatusNotFound, http.MethodGet, g.url("/certificates/1234"), nil, nil)
}

func TestCAGatewayFeedsEventsFromWhereTheReaderWas(t *testing.T) {
	t.Parallel()
	g := newCAGW(t)
	began := g.now()
	enroll := func(name string) string {
		g.pass(time.Minute)
		_, csr := newCSR(t, "")
		return g.enroll(http.StatusOK, g.order(csr, name)).Enrollment.SerialNumber
	}
	type page struct {
		Type   string `json:"type"`
		Events []struct {
			Action      string `json:"action"`
			Serial      string `json:"serialNumber"`
			Certificate string `json:"certificate"`
			Reason      string `json:"reason"`
		} `json:"events"`
		More bool   `json:"morePages"`
		Next string `json:"nextPageIndex"`
	}
	read := func(query string) (out page) {
		g.must(http.StatusOK, http.MethodGet, g.url("/certificate-events?"+query), nil, nil).into(t, &out)
		require.Equal(t, "CertificateEventsResponse", out.Type)
		return out
	}
	first, second, third := enroll("a.example.com"), enroll("b.example.com"), enroll("c.example.com")
	start := "startDate=" + began.UTC().Format("2006-01-02T15:04:05.000Z")
	got := read(start + "&preferredPageSize=2")
	require.Len(t, got.Events, 2)
	require.True(t, got.More)
	require.Equal(t, first, got.Events[0].Serial)
	require.Equal(t, "issued", got.Events[0].Action)
	require.Equal(t, "b.example.com", parseDER(t, got.Events[1].Certificate).Subject.CommonName)
	require.Equal(t, second, got.Events[1].Serial)
	got = read("nextPageIndex=" + got.Next + "&%24fields=-events.certificate")
	require.Len(t, got.Events, 1)
	require.Equal(t, third, got.Events[0].Serial)
	require.Empty(t, got.Events[0].Certificate)
	require.False(t, got.More)
	next := got.Next
	require.Empty(t, read("nextPageIndex="+next).Events)

	g.restart()
	g.pass(time.Minute)
	g.must(http.StatusOK, http.MethodPost, g.url("/certificates/"+first+"/actions"), nil, object{"action": object{"type": "RevokeAction", "reason": "keyCompromise"}})
	require.NoError(t, g.sim.Decide(EntrustGateway, g.sim.Orders()[1].ID, "forget", ""))
	got = read("nextPageIndex=" + next)
	require.Len(t, got.Events, 1)
	require.Equal(t, "revoked", got.Events[0].Action)
	require.Equal(t, "keyCompromise", got.Events[0].Reason)
	require.Empty(t, read("startDate="+g.now().UTC().Add(time.Minute).Format("2006-01-02T15:04:05.000Z")).Events)
	g.sim.Set(Fault{CA: EntrustGateway, Operation: "changes", Kind: Forgotten, Delay: time.Minute})
	late := enroll("d.example.com")
	require.Empty(t, read("nextPageIndex="+got.Next).Events)
	g.pass(time.Minute)
	got = read("nextPageIndex=" + got.Next)
	require.Len(t, got.Events, 1)
	require.Equal(t, late, got.Events[0].Serial, "what comes late is not passed over")
	for _, bad := range []string{"", "startDate=yesterday", "nextPageIndex=7x", start + "&preferredPageSize=0"} {
		g.must(http.StatusBadRequest, http.MethodGet, g.url("/certificate-events?"+bad), nil, nil)
	}
}

func TestValidityPeriodsAreReadAsISO8601HasThem(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	tests := map[string][2]time.Time{
		"P1Y3M10DT0H0M":                          {now, time.Date(2028, 3, 11, 12, 0, 0, 0, time.UTC)},
		"PT90M":                                  {now, now.Add(90 * time.Minute)},
		"P2W":                                    {now, now.Add(14 * 24 * time.Hour)},
		"2018-07-06T13:00Z/2019-07-06T13:00:00Z": {time.Date(2018, 7, 6, 13, 0, 0, 0, time.UTC), time.Date(2019, 7, 6, 13, 0, 0, 0, time.UTC)},
		"2018-07-06T13:00Z/P1Y3M0DT0H0M":         {time.Date(2018, 7, 6, 13, 0, 0, 0, time.UTC), time.Date(2019, 10, 6, 13, 0, 0, 0, time.UTC)},
		"P0Y3M0DT0H0M/2018-12-31T00:00Z":         {time.Date(2018, 10, 1, 0, 0, 0, 0, time.UTC), time.Date(2018, 12, 31, 0, 0, 0, 0, time.UTC)},
		"2026-11-30T12:00:00+02:00/2026-12-30T12:00Z": {now.Add(-2 * time.Hour), now.Add(30 * 24 * time.Hour)},
	}
	for text, want := range tests {
		notBefore, notAfter, err := validityWindow(text, now)
		require.NoError(t, err, text)
		require.Equal(t, want, [2]time.Time{notBefore, notAfter}, text)
	}
	for _, text := range []string{"", "P", "PT", "1Y", "P1", "P1YT", "P1Y/P1Y", "x/P1Y", "P1Y/x", "2018-07-06T13:00Z/", "P99999999999999999999Y"} {
		_, _, err := validityWindow(text, now)
		require.Error(t, err, text)
	}
}

func TestDistinguishedNamesAreReadAsRFC4514HasThem(t *testing.T) {
	t.Parallel()
	got, err := parseDN(`cn=Example\, Inc. \2B Sons,O = Example ,C=US+OU=a`)
	require.NoError(t, err)
	require.Equal(t, []dnAttribute{{"CN", "Example, Inc. + Sons"}, {"O", "Example"}, {"C", "US"}, {"OU", "a"}}, got)
	for _, text := range []string{"example.com", "x=1", "cn=", `cn=a\`, "=a"} {
		_, err := parseDN(text)
		require.Error(t, err, text)
	}
}

package casimulator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// faulty is a rig with one fault, and an order of DigiCert that can be placed.
type faulty struct {
	*rig
	order map[string]any
}

func withFault(t *testing.T, f casimulator.Fault) faulty {
	t.Helper()
	r := start(t, casimulator.Config{}).digicert()
	if f.CA == "" {
		f.CA = casimulator.DigiCert
	}
	r.sim.Set(f)
	return faulty{rig: r, order: dcOrder(t, r, "example.com", nil)}
}

func (f faulty) submit(t *testing.T) (answer, error) {
	t.Helper()
	return f.try(t, "POST", dcBase+"/order/certificate/ssl_basic", f.order)
}

// faultTests hold one test for each kind.
var faultTests = map[casimulator.Kind]func(*testing.T){
	casimulator.Delay:               func(t *testing.T) { testDelay(t, casimulator.Delay) },
	casimulator.DelayAfter:          func(t *testing.T) { testDelay(t, casimulator.DelayAfter) },
	casimulator.Hang:                testHang,
	casimulator.RateLimit:           testRateLimit,
	casimulator.ServerError:         func(t *testing.T) { testStatus(t, casimulator.ServerError, 500, 0) },
	casimulator.ServerErrorAfter:    func(t *testing.T) { testStatus(t, casimulator.ServerErrorAfter, 500, 1) },
	casimulator.ClientError:         testClientError,
	casimulator.HTMLPage:            func(t *testing.T) { testStatus(t, casimulator.HTMLPage, 502, 0) },
	casimulator.HTMLPageAfter:       func(t *testing.T) { testStatus(t, casimulator.HTMLPageAfter, 502, 1) },
	casimulator.DropBefore:          func(t *testing.T) { testDrop(t, casimulator.DropBefore, 0) },
	casimulator.DropAfter:           func(t *testing.T) { testDrop(t, casimulator.DropAfter, 1) },
	casimulator.ReplyTwice:          testReplyTwice,
	casimulator.DoubledReply:        testDoubledReply,
	casimulator.SlowBytes:           testSlowBytes,
	casimulator.OversizedBody:       testOversizedBody,
	casimulator.MalformedJSON:       testMalformedJSON,
	casimulator.MTLSRefused:         testMTLSRefused,
	casimulator.TokenExpired:        testTokenExpired,
	casimulator.Forgotten:           testForgotten,
	casimulator.IssueAfter:          testIssueAfter,
	casimulator.NeedsApproval:       testNeedsApproval,
	casimulator.Reject:              testReject,
	casimulator.DuplicateOrder:      testDuplicateOrder,
	casimulator.WrongKey:            testWrongKey,
	casimulator.WrongName:           testWrongName,
	casimulator.NotYetValid:         testNotYetValid,
	casimulator.RootFirst:           testRootFirst,
	casimulator.MissingIntermediate: testMissingIntermediate,
	casimulator.WrongSerial:         testWrongSerial,
}

func TestEveryFaultDoesWhatItSays(t *testing.T) {
	t.Parallel()
	for _, kind := range casimulator.Kinds() {
		test, ok := faultTests[kind]
		require.True(t, ok, "no test of %s", kind)
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// testDelay leaves when the CA has begun to wait.
func testDelay(t *testing.T, kind casimulator.Kind) {
	f := withFault(t, casimulator.Fault{Kind: kind, Delay: time.Hour, Times: 1})
	leaveWhen(t, f, kind)
	require.Len(t, f.sim.Orders(), map[casimulator.Kind]int{casimulator.Delay: 0, casimulator.DelayAfter: 1}[kind])
	f.sim.Set(casimulator.Fault{Kind: kind, Delay: time.Millisecond})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, a.status)
}

// leaveWhen places the order, and gives it up when its fault has begun to happen, which is when the simulator counts it.
func leaveWhen(t *testing.T, f faulty, kind casimulator.Kind) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+f.at.CAs+dcBase+"/order/certificate/ssl_basic", encode(t, f.order))
	require.NoError(t, err)
	request.Header.Set("X-Dc-Devkey", f.sim.Credentials().DigiCertAPIKey)
	request.Header.Set("Content-Type", "application/json")
	failed := make(chan error, 1)
	go func() {
		_, err := f.client.Do(request)
		failed <- err
	}()
	require.Eventually(t, func() bool { return f.sim.Happened(kind) == 1 }, time.Minute, time.Millisecond)
	leave()
	require.ErrorIs(t, <-failed, context.Canceled)
	require.Eventually(t, func() bool { return len(f.sim.Requests()) == 1 }, time.Minute, time.Millisecond)
	require.Zero(t, f.sim.Requests()[0].Status)
}

func encode(t *testing.T, v any) *strings.Reader {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return strings.NewReader(string(text))
}

func testHang(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.Hang, Operation: "submit", Times: 1})
	leaveWhen(t, f, casimulator.Hang)
	require.Empty(t, f.sim.Orders())
}

func testRateLimit(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.RateLimit, Operation: "submit", Times: 1})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusTooManyRequests, a.status)
	require.Equal(t, "request_limit_exceeded", a.text(t, "errors", 0, "code"))
	require.Empty(t, a.header.Get("Retry-After"))
	f.sim.Set(casimulator.Fault{Kind: casimulator.RateLimit, RetryAfter: 20 * time.Second, Times: 1},
		casimulator.Fault{Kind: casimulator.RateLimit, RetryAfter: 20 * time.Second, RetryAfterDate: true, Times: 1})
	a, err = f.submit(t)
	require.NoError(t, err)
	require.Equal(t, "20", a.header.Get("Retry-After"))
	a, err = f.submit(t)
	require.NoError(t, err)
	at, err := http.ParseTime(a.header.Get("Retry-After"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(20*time.Second), at, 10*time.Second)
	require.Empty(t, f.sim.Orders())
	a, err = f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, a.status)
}

func testClientError(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.ClientError, Status: 409, Code: "busy", Times: 1})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, a.status)
	require.Equal(t, "busy", a.text(t, "errors", 0, "code"))
	require.Empty(t, f.sim.Orders())
	a, err = f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, a.status)
}

func testStatus(t *testing.T, kind casimulator.Kind, status, orders int) {
	f := withFault(t, casimulator.Fault{Kind: kind, Times: 1})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, status, a.status)
	require.Len(t, f.sim.Orders(), orders)
	html := strings.HasPrefix(string(a.body), "<html>")
	require.Equal(t, kind == casimulator.HTMLPage || kind == casimulator.HTMLPageAfter, html)
	f.sim.Set(casimulator.Fault{Kind: kind, Status: 503, RetryAfter: time.Minute})
	a, err = f.submit(t)
	require.NoError(t, err)
	require.Equal(t, 503, a.status)
	if html {
		f.sim.Set(casimulator.Fault{Kind: kind, Status: 200})
		a, err = f.submit(t)
		require.NoError(t, err)
		require.Equal(t, 200, a.status)
		return
	}
	require.Equal(t, "60", a.header.Get("Retry-After"))
}

func testDrop(t *testing.T, kind casimulator.Kind, orders int) {
	f := withFault(t, casimulator.Fault{Kind: kind, CommonName: "example.com", Times: 1})
	_, err := f.submit(t)
	require.Error(t, err)
	require.Len(t, f.sim.Orders(), orders)
	require.Equal(t, []casimulator.Kind{kind}, f.sim.Requests()[0].Faults)
	require.Equal(t, "example.com", f.sim.Requests()[0].CommonName)
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, a.status)
	require.Len(t, f.sim.Orders(), orders+1, "the CA does not know that it is the same order")
}

func testReplyTwice(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.ReplyTwice, Times: 1})
	first, err := f.submit(t)
	require.NoError(t, err)
	second, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, first.body, second.body)
	require.Len(t, f.sim.Orders(), 1)
	f.order["comments"] = "another"
	third, err := f.submit(t)
	require.NoError(t, err)
	require.NotEqual(t, first.body, third.body)
}

func testDoubledReply(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.DoubledReply, Operation: "submit", Times: 1})
	transport, ok := f.client.Transport.(*http.Transport)
	require.True(t, ok)
	conn, err := tls.Dial("tcp", f.at.CAs, transport.TLSClientConfig)
	require.NoError(t, err)
	defer conn.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+f.at.CAs+dcBase+"/order/certificate/ssl_basic", encode(t, f.order))
	require.NoError(t, err)
	request.Header.Set("X-Dc-Devkey", f.sim.Credentials().DigiCertAPIKey)
	request.Header.Set("Content-Type", "application/json")
	require.NoError(t, request.Write(conn))
	both, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(both), "HTTP/1.1 201 Created"))
	half := len(both) / 2
	require.Equal(t, both[:half], both[half:])
	require.Len(t, f.sim.Orders(), 1)
}

func testSlowBytes(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.SlowBytes, Delay: 100 * time.Millisecond, Times: 1})
	before := time.Now()
	a, err := f.submit(t)
	require.NoError(t, err)
	require.NotEmpty(t, a.text(t, "id"))
	require.GreaterOrEqual(t, time.Since(before), 95*time.Millisecond)
}

func testOversizedBody(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.OversizedBody, Bytes: 1 << 20})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Len(t, a.body, 1<<20)
	require.NotEmpty(t, a.text(t, "id"), "it is JSON nevertheless")
}

func testMalformedJSON(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.MalformedJSON})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.False(t, json.Valid(a.body))
	require.Len(t, f.sim.Orders(), 1)
}

func testMTLSRefused(t *testing.T) {
	r := start(t, casimulator.Config{})
	c := r.sim.Credentials()
	private := r.with(map[string]string{"login": c.SectigoLogin, "customerUri": c.SectigoCustomerURI})
	private.client = client(t, r.sim, true)
	r.sim.Set(casimulator.Fault{Kind: casimulator.MTLSRefused})
	_, err := private.try(t, "GET", "/sectigo/private/api/ssl/v1/types", nil)
	require.ErrorContains(t, err, "tls: bad certificate")
	r.sim.Set()
	private.do(t, http.StatusOK, "GET", "/sectigo/private/api/ssl/v1/types", nil)
	r.sim.Set(casimulator.Fault{Kind: casimulator.MTLSRefused})
	private.do(t, http.StatusBadRequest, "GET", "/sectigo/private/api/ssl/v1/types", nil) // on the open connection
}

func testTokenExpired(t *testing.T) {
	r := start(t, casimulator.Config{})
	c := r.sim.Credentials()
	r.client = client(t, r.sim, true)
	json := "application/json;charset=utf-8"
	login := r.with(map[string]string{"Content-Type": json}).do(t, http.StatusOK, "POST", "/globalsign/v2/login",
		map[string]string{"api_key": c.GlobalSignAPIKey, "api_secret": c.GlobalSignAPISecret})
	authorised := r.with(map[string]string{"Authorization": "Bearer " + login.text(t, "access_token")})
	authorised.do(t, http.StatusOK, "GET", "/globalsign/v2/trustchain", nil)
	r.sim.Set(casimulator.Fault{CA: "globalsign", Kind: casimulator.TokenExpired, Times: 1})
	authorised.do(t, http.StatusUnauthorized, "GET", "/globalsign/v2/trustchain", nil)
}

func testForgotten(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.Forgotten, Operation: "status", Times: 1})
	a, err := f.submit(t)
	require.NoError(t, err)
	path := dcBase + "/order/certificate/" + a.text(t, "id")
	require.Equal(t, "not_found|order", f.do(t, http.StatusNotFound, "GET", path, nil).text(t, "errors", 0, "code"))
	f.do(t, http.StatusOK, "GET", path, nil)
	require.NoError(t, f.sim.Decide("digicert", a.text(t, "id"), "forget", ""))
	f.do(t, http.StatusNotFound, "GET", path, nil)
	require.Equal(t, "0", f.do(t, http.StatusOK, "GET", dcBase+"/order/certificate", nil).text(t, "page", "total"))
	require.True(t, onlyOrder(t, f.sim).Forgotten)
}

func testIssueAfter(t *testing.T) {
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now}).digicert()
	r.sim.Set(casimulator.Fault{Kind: casimulator.IssueAfter, CommonName: "late.example.com", Delay: time.Hour})
	late, _ := dcSubmit(t, r, "late.example.com", nil)
	soon, _ := dcSubmit(t, r, "soon.example.com", nil)
	require.Equal(t, "processing", dcStatus(t, r, late))
	require.Equal(t, "issued", dcStatus(t, r, soon))
	now.forward(time.Hour)
	require.Equal(t, "issued", dcStatus(t, r, late))
}

func testNeedsApproval(t *testing.T) {
	now := newClock()
	r := start(t, casimulator.Config{Now: now.Now}).digicert()
	r.sim.Set(casimulator.Fault{Kind: casimulator.NeedsApproval, Delay: time.Hour, Times: 1}, casimulator.Fault{Kind: casimulator.NeedsApproval})
	first, _ := dcSubmit(t, r, "a.example.com", nil)
	second, _ := dcSubmit(t, r, "b.example.com", nil)
	now.forward(time.Hour)
	require.Equal(t, "issued", dcStatus(t, r, first))
	require.Equal(t, "pending", dcStatus(t, r, second))
	r.control(t, http.StatusOK, "POST", "/orders/"+second+"/approve", "")
	require.Equal(t, "issued", dcStatus(t, r, second))
}

func testReject(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.Reject, Order: "ref-example.com", Reason: "CAA record"})
	a, err := f.submit(t)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, a.status, "it was accepted at first")
	require.Equal(t, "rejected", dcStatus(t, f.rig, a.text(t, "id")))
	truth := onlyOrder(t, f.sim)
	require.Equal(t, casimulator.Rejected, truth.State)
	require.Zero(t, truth.Certificates)
}

func testDuplicateOrder(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.DuplicateOrder, Times: 1})
	a, err := f.submit(t)
	require.NoError(t, err)
	orders := f.sim.Orders()
	require.Len(t, orders, 2)
	require.Equal(t, a.text(t, "id"), orders[0].ID)
	require.Equal(t, orders[0].CSRSHA256, orders[1].CSRSHA256)
	require.NotEqual(t, orders[0].Serials, orders[1].Serials)
	info := f.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+orders[1].ID, nil)
	require.Equal(t, "approved", info.text(t, "requests", 0, "status"))
}

// collected is the bundle of the order that a fault spoils.
func collected(t *testing.T, f faulty) []*x509.Certificate {
	t.Helper()
	a, err := f.submit(t)
	require.NoError(t, err)
	path := dcBase + "/certificate/" + a.text(t, "certificate_id") + "/download/format/pem_all"
	return certificates(t, f.do(t, http.StatusOK, "GET", path, nil).body)
}

func testWrongKey(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.WrongKey, CommonName: "example.com"})
	require.NotEqual(t, signer().Public(), collected(t, f)[0].PublicKey)
}

func testWrongName(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.WrongName})
	require.Error(t, collected(t, f)[0].VerifyHostname("example.com"))
}

func testNotYetValid(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.NotYetValid})
	require.True(t, collected(t, f)[0].NotBefore.After(time.Now()))
}

func testRootFirst(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.RootFirst, Operation: "collect"})
	chain := collected(t, f)
	require.Len(t, chain, 3)
	require.Equal(t, chain[0].RawIssuer, chain[0].RawSubject)
	require.Equal(t, signer().Public(), chain[2].PublicKey)
}

func testMissingIntermediate(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.MissingIntermediate, Operation: "collect"})
	chain := collected(t, f)
	require.Len(t, chain, 2)
	require.NotEqual(t, chain[0].RawIssuer, chain[1].RawSubject)
}

func testWrongSerial(t *testing.T) {
	f := withFault(t, casimulator.Fault{Kind: casimulator.WrongSerial})
	a, err := f.submit(t)
	require.NoError(t, err)
	info := f.do(t, http.StatusOK, "GET", dcBase+"/order/certificate/"+a.text(t, "id"), nil)
	require.NotEqual(t, onlyOrder(t, f.sim).Serials[0], info.text(t, "certificate", "serial_number"))
}

func TestFaultsHappenAsOftenAsTheySay(t *testing.T) {
	t.Parallel()
	count := func(seed uint64) (failed int) {
		r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Seed: seed, Unlimited: true, Faults: []casimulator.Fault{
			{Kind: casimulator.ServerError, Operation: "probe", Probability: 0.3}, {CA: "sectigo", Kind: casimulator.DropBefore},
		}}}).digicert()
		for range 200 {
			a, err := r.try(t, "GET", dcBase+"/user/me", nil)
			require.NoError(t, err, "the other CA's fault is not ours")
			if a.status == 500 {
				failed++
			}
		}
		r.do(t, http.StatusOK, "GET", dcBase+"/product", nil)
		return failed
	}
	first := count(7)
	require.InDelta(t, 60, first, 30)
	require.Equal(t, first, count(7), "the same seed, the same schedule")
}

func TestTheClockOfTheCACanBeOff(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Clock: 24 * time.Hour}}).digicert()
	a := r.do(t, http.StatusCreated, "POST", dcBase+"/order/certificate/ssl_basic", dcOrder(t, r, "example.com", nil))
	date, err := http.ParseTime(a.header.Get("Date"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), date, time.Minute)
	path := dcBase + "/certificate/" + a.text(t, "certificate_id") + "/download/format/pem_nointermediate"
	leaf := certificates(t, r.do(t, http.StatusOK, "GET", path, nil).body)[0]
	require.True(t, leaf.NotBefore.After(time.Now()))
	r.control(t, http.StatusNoContent, "POST", "/clock", `{"offset":"-24h"}`)
	date, err = http.ParseTime(r.do(t, http.StatusOK, "GET", dcBase+"/user/me", nil).header.Get("Date"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(-24*time.Hour), date, time.Minute)
}

func TestClientCertificatesCanBeRotated(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{})
	c := r.sim.Credentials()
	private := r.with(map[string]string{"login": c.SectigoLogin, "customerUri": c.SectigoCustomerURI})
	path := "/sectigo/private/api/ssl/v1/types"
	private.client = client(t, r.sim, true)
	private.do(t, http.StatusOK, "GET", path, nil)
	require.NoError(t, r.sim.RotateClientCertificate())
	private.do(t, http.StatusForbidden, "GET", path, nil) // on the open connection
	private.client.CloseIdleConnections()
	_, err := private.try(t, "GET", path, nil)
	require.ErrorContains(t, err, "tls: bad certificate")
	private.client = client(t, r.sim, true)
	private.do(t, http.StatusOK, "GET", path, nil)
}

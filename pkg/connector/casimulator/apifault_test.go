package casimulator

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// faultChecks say of each kind what a client sees.
func faultChecks() map[Kind]func(*plainClient) {
	return map[Kind]func(*plainClient){
		Delay: checkDelay, DelayAfter: checkDelay, Hang: checkHang, RateLimit: checkRateLimit,
		ServerError:         func(p *plainClient) { checkServerError(p, ServerError, 0) },
		ServerErrorAfter:    func(p *plainClient) { checkServerError(p, ServerErrorAfter, 1) },
		ClientError:         checkClientError,
		HTMLPage:            func(p *plainClient) { checkPage(p, HTMLPage, 0) },
		HTMLPageAfter:       func(p *plainClient) { checkPage(p, HTMLPageAfter, 1) },
		DropBefore:          func(p *plainClient) { checkDrop(p, DropBefore, 0) },
		DropAfter:           func(p *plainClient) { checkDrop(p, DropAfter, 1) },
		ReplyTwice:          checkReplyTwice,
		DoubledReply:        checkDoubledReply,
		SlowBytes:           checkSlowBytes,
		OversizedBody:       checkOversizedBody,
		MalformedJSON:       checkMalformedJSON,
		MTLSRefused:         checkMTLSRefused,
		TokenExpired:        checkTokenExpired,
		Forgotten:           checkForgotten,
		IssueAfter:          checkIssueAfter,
		NeedsApproval:       checkNeedsApproval,
		Reject:              checkReject,
		DuplicateOrder:      checkDuplicateOrder,
		WrongKey:            checkWrongKey,
		WrongName:           checkWrongName,
		NotYetValid:         checkNotYetValid,
		RootFirst:           checkRootFirst,
		MissingIntermediate: checkMissingIntermediate,
		WrongSerial:         checkWrongSerial,
	}
}

func TestEveryFaultIsReachableAtEveryCA(t *testing.T) {
	t.Parallel()
	clients := map[string]func(*testing.T) *plainClient{
		DigiCert: digicertClient, Sectigo: sectigoClient, GlobalSign: globalSignClient, EntrustGateway: gatewayClient, EntrustECS: ecsClientOf,
	}
	require.Len(t, clients, len(CAs()))
	for ca, newClient := range clients {
		for _, kind := range Kinds() {
			t.Run(ca+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				check, ok := faultChecks()[kind]
				require.True(t, ok, "nobody checks %s", kind)
				p := newClient(t)
				check(p)
				require.Empty(t, p.sim.Violations(), "a fault is no mistake of the client")
			})
		}
	}
}

func checkDelay(p *plainClient) {
	for _, kind := range []Kind{Delay, DelayAfter} {
		p.set("submit", Fault{Kind: kind, Delay: 50 * time.Millisecond, Times: 1})
		began := time.Now()
		p.placed()
		require.GreaterOrEqual(p.t, time.Since(began), 50*time.Millisecond)
	}
	p.orders(2)
}

// checkHang leaves when the CA has begun to hang, which has done nothing.
func checkHang(p *plainClient) {
	p.set("submit", Fault{Kind: Hang})
	ctx, leave := context.WithCancel(p.t.Context())
	defer leave()
	left := make(chan error, 1)
	method, url, header, body := p.submit()
	go func() {
		_, err := p.sendIn(ctx, method, url, header, body)
		left <- err
	}()
	require.Eventually(p.t, func() bool {
		p.sim.faults.mu.Lock()
		defer p.sim.faults.mu.Unlock()
		return p.sim.faults.used[0] > 0
	}, time.Minute, time.Millisecond)
	select {
	case err := <-left:
		require.FailNow(p.t, "the CA answered", "%v", err)
	default:
	}
	leave()
	require.ErrorIs(p.t, <-left, context.Canceled)
	p.orders(0)
	p.sim.Set()
	p.placed()
}

func checkRateLimit(p *plainClient) {
	for _, f := range []Fault{{}, {RetryAfter: 7 * time.Second}, {RetryAfter: time.Minute, RetryAfterDate: true}} {
		f.Kind, f.Times = RateLimit, 1
		p.set("submit", f)
		a, err := p.order()
		require.NoError(p.t, err)
		require.Equal(p.t, http.StatusTooManyRequests, a.status)
		require.True(p.t, json.Valid(a.body), "%s", a.body)
		switch said := a.header.Get("Retry-After"); {
		case f.RetryAfterDate:
			at, err := http.ParseTime(said)
			require.NoError(p.t, err)
			require.WithinDuration(p.t, p.now().Add(time.Minute), at, 10*time.Second)
		case f.RetryAfter > 0:
			require.Equal(p.t, "7", said)
		default:
			require.Empty(p.t, said)
		}
	}
	p.orders(0)
}

func checkServerError(p *plainClient, kind Kind, orders int) {
	p.set("submit", Fault{Kind: kind, Status: http.StatusServiceUnavailable, Times: 1})
	a, err := p.order()
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusServiceUnavailable, a.status)
	require.True(p.t, json.Valid(a.body), "%s", a.body)
	p.orders(orders)
}

// checkClientError: GlobalSign and Entrust Certificate Services have no codes of errors.
func checkClientError(p *plainClient) {
	p.set("submit", Fault{Kind: ClientError, Status: http.StatusConflict, Code: "-7", Times: 1})
	a, err := p.order()
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusConflict, a.status)
	require.True(p.t, json.Valid(a.body), "%s", a.body)
	require.Equal(p.t, p.ca != GlobalSign && p.ca != EntrustECS, bytes.Contains(a.body, []byte("-7")), "%s", a.body)
	p.orders(0)
	p.set("submit", Fault{Kind: ClientError, Times: 1})
	a, err = p.order()
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusBadRequest, a.status)
	p.orders(0)
}

func checkPage(p *plainClient, kind Kind, orders int) {
	for n, status := range []int{http.StatusBadGateway, http.StatusOK} {
		p.set("submit", Fault{Kind: kind, Status: status, Times: 1})
		a, err := p.order()
		require.NoError(p.t, err)
		require.Equal(p.t, status, a.status)
		require.Equal(p.t, "text/html", a.header.Get("Content-Type"))
		require.Contains(p.t, string(a.body), "<html>")
		p.orders(orders * (n + 1))
	}
}

func checkDrop(p *plainClient, kind Kind, orders int) {
	p.set("submit", Fault{Kind: kind, Times: 1})
	_, err := p.order()
	require.Error(p.t, err)
	p.orders(orders)
}

// checkReplyTwice sends the same request twice, as a proxy does that repeats it.
func checkReplyTwice(p *plainClient) {
	p.set("submit", Fault{Kind: ReplyTwice, Times: 1})
	first, second := p.placed(), p.placed()
	require.Equal(p.t, first, second)
	p.orders(1)
}

// checkDoubledReply reads the connection to its end, as http.Client does not.
func checkDoubledReply(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: DoubledReply, Times: 1})
	url, header := p.poll(id)
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, url, nil)
	require.NoError(p.t, err)
	if header != nil {
		request.Header = header
	}
	transport, ok := p.client.Transport.(*http.Transport)
	require.True(p.t, ok)
	config := transport.TLSClientConfig.Clone()
	config.ServerName = "127.0.0.1"
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(p.t.Context(), "tcp", p.at.CAs)
	require.NoError(p.t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(p.t, request.Write(conn))
	all, err := io.ReadAll(conn)
	require.NoError(p.t, err)
	require.Equal(p.t, 2, bytes.Count(all, []byte("HTTP/1.1 200 OK")), "%s", all)
}

func checkSlowBytes(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: SlowBytes, Delay: 200 * time.Millisecond, Times: 1})
	began := time.Now()
	slow := p.ask(http.StatusOK, p.poll, id)
	require.GreaterOrEqual(p.t, time.Since(began), 180*time.Millisecond)
	require.JSONEq(p.t, string(p.ask(http.StatusOK, p.poll, id).body), string(slow.body))
}

func checkOversizedBody(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: OversizedBody, Bytes: 3 << 20, Times: 1})
	a := p.ask(http.StatusOK, p.poll, id)
	require.GreaterOrEqual(p.t, len(a.body), 3<<20)
}

func checkMalformedJSON(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: MalformedJSON, Times: 1})
	require.False(p.t, json.Valid(p.ask(http.StatusOK, p.poll, id).body))
	require.True(p.t, json.Valid(p.ask(http.StatusOK, p.poll, id).body))

	p.set("submit", Fault{Kind: MalformedJSON, Times: 1})
	a, err := p.order()
	require.NoError(p.t, err)
	require.False(p.t, json.Valid(a.body))
	p.orders(2)
}

// checkMTLSRefused presents a client certificate, which each CA takes and two require.
func checkMTLSRefused(p *plainClient) {
	p.set("submit", Fault{Kind: MTLSRefused})
	a, err := p.order()
	if err == nil { // the handshake is over, and then the request is refused
		require.Equal(p.t, http.StatusBadRequest, a.status)
	}
	p.orders(0)
	p.sim.Set(Fault{Kind: MTLSRefused, Times: 1})
	_, err = p.order()
	require.Error(p.t, err) // of TLS, or of the connection when the request was being written
	p.orders(0)
	p.placed()
}

// checkTokenExpired matters to GlobalSign, which has sessions. The others have nothing that could end.
func checkTokenExpired(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: TokenExpired, Times: 1})
	if p.ca != GlobalSign {
		p.ask(http.StatusOK, p.poll, id)
		return
	}
	a := p.ask(http.StatusUnauthorized, p.poll, id)
	require.Contains(p.t, string(a.body), "expired")
	p.orders(1)
}

func checkForgotten(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: Forgotten, Times: 1})
	p.ask(p.gone, p.poll, id)
	p.ask(http.StatusOK, p.poll, id)
	require.NoError(p.t, p.sim.Decide(p.ca, id, "forget", ""))
	p.ask(p.gone, p.poll, id)
	require.True(p.t, p.sim.Orders()[0].Forgotten)
}

func checkIssueAfter(p *plainClient) {
	p.set("submit", Fault{Kind: IssueAfter, Delay: 5 * time.Minute})
	id := p.placed()
	require.True(p.t, p.pending(id))
	p.pass(4 * time.Minute)
	require.True(p.t, p.pending(id))
	p.pass(time.Minute)
	require.False(p.t, p.pending(id))
	require.True(p.t, p.key.PublicKey.Equal(p.leaf(p.ask(http.StatusOK, p.collect, id)).PublicKey))
}

func checkNeedsApproval(p *plainClient) {
	p.set("submit", Fault{Kind: NeedsApproval, Times: 1})
	id := p.placed()
	require.True(p.t, p.pending(id))
	require.Equal(p.t, Waiting, p.sim.Orders()[0].State)
	require.NoError(p.t, p.sim.Decide(p.ca, id, "approve", ""))
	require.False(p.t, p.pending(id))

	p.set("submit", Fault{Kind: NeedsApproval, Delay: time.Minute, Times: 1})
	id = p.placed()
	require.True(p.t, p.pending(id))
	p.pass(time.Minute)
	require.False(p.t, p.pending(id), "somebody approved after a minute")
}

func checkReject(p *plainClient) {
	p.set("submit", Fault{Kind: Reject, Delay: time.Minute, Reason: caaReason})
	id := p.placed()
	require.True(p.t, p.pending(id))
	p.pass(time.Minute)
	require.True(p.t, p.pending(id))
	require.Contains(p.t, string(p.ask(p.refused, p.poll, id).body), p.why)
	require.Equal(p.t, Rejected, p.sim.Orders()[0].State)
}

func checkDuplicateOrder(p *plainClient) {
	p.set("submit", Fault{Kind: DuplicateOrder, Times: 1})
	id := p.placed()
	p.orders(2)
	all := p.sim.Orders()
	require.NotEqual(p.t, all[0].ID, all[1].ID)
	require.Equal(p.t, all[0].CSRSHA256, all[1].CSRSHA256)
	require.Equal(p.t, id, all[0].ID)
	first, second := p.ask(http.StatusOK, p.collect, id), p.ask(http.StatusOK, p.collect, all[1].ID)
	require.NotEqual(p.t, p.leaf(first).SerialNumber, p.leaf(second).SerialNumber, "both are bought")
}

func checkWrongKey(p *plainClient) {
	p.set("", Fault{Kind: WrongKey})
	id := p.placed()
	leaf := p.leaf(p.ask(http.StatusOK, p.collect, id))
	require.False(p.t, p.key.PublicKey.Equal(leaf.PublicKey))
	require.Equal(p.t, []string{faultyName}, leaf.DNSNames)
	p.sim.Set()
	require.Equal(p.t, leaf.Raw, p.leaf(p.ask(http.StatusOK, p.collect, id)).Raw, "what was made so stays so")
}

func checkWrongName(p *plainClient) {
	p.set("", Fault{Kind: WrongName})
	leaf := p.leaf(p.ask(http.StatusOK, p.collect, p.placed()))
	require.NotContains(p.t, leaf.DNSNames, faultyName)
	require.NotEmpty(p.t, leaf.DNSNames)
}

func checkNotYetValid(p *plainClient) {
	p.set("", Fault{Kind: NotYetValid})
	leaf := p.leaf(p.ask(http.StatusOK, p.collect, p.placed()))
	require.True(p.t, leaf.NotBefore.After(p.now().Add(24*time.Hour)))
	require.True(p.t, p.key.PublicKey.Equal(leaf.PublicKey))
}

func checkRootFirst(p *plainClient) {
	id := p.placed()
	p.set(p.chainOperation, Fault{Kind: RootFirst, Times: 1})
	wrong := p.certificates(p.ask(http.StatusOK, p.chain, id))
	require.Equal(p.t, wrong[0].RawIssuer, wrong[0].RawSubject, "the root comes first")
	right := p.certificates(p.ask(http.StatusOK, p.chain, id))
	require.NotEqual(p.t, right[0].RawIssuer, right[0].RawSubject)
	slices.Reverse(right)
	require.Equal(p.t, right, wrong)
}

func checkMissingIntermediate(p *plainClient) {
	id := p.placed()
	intermediate := p.sim.authority.intermediate.certificate
	p.set(p.chainOperation, Fault{Kind: MissingIntermediate, Times: 1})
	require.False(p.t, slices.ContainsFunc(p.certificates(p.ask(http.StatusOK, p.chain, id)), intermediate.Equal))
	require.True(p.t, slices.ContainsFunc(p.certificates(p.ask(http.StatusOK, p.chain, id)), intermediate.Equal))
}

func checkWrongSerial(p *plainClient) {
	id := p.placed()
	p.set(p.pollOperation, Fault{Kind: WrongSerial, Times: 1})
	wrong := p.serial(p.ask(http.StatusOK, p.poll, id))
	right := p.serial(p.ask(http.StatusOK, p.poll, id))
	require.NotEqual(p.t, right, wrong)
	require.Equal(p.t, []string{right}, p.sim.Orders()[0].Serials)
	require.Equal(p.t, right, formatSerial(p.leaf(p.ask(http.StatusOK, p.collect, id)).SerialNumber))
}

func TestTheCAsClockMayBeOffByADayAtEveryCA(t *testing.T) {
	t.Parallel()
	for ca, newClient := range map[string]func(*testing.T) *plainClient{
		DigiCert: digicertClient, Sectigo: sectigoClient, EntrustGateway: gatewayClient, EntrustECS: ecsClientOf,
	} {
		for _, offset := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
			t.Run(ca+"/"+offset.String(), func(t *testing.T) {
				t.Parallel()
				p := newClient(t)
				p.sim.SetClock(offset)
				id := p.placed()
				a := p.ask(http.StatusOK, p.collect, id)
				said, err := http.ParseTime(a.header.Get("Date"))
				require.NoError(t, err)
				require.WithinDuration(t, p.now().Add(offset), said, 10*time.Second)
				// DigiCert's certificates begin at midnight.
				require.WithinDuration(t, p.now().Add(offset), p.leaf(a).NotBefore, 24*time.Hour+time.Minute)
			})
		}
	}
}

// GlobalSign's clients say when a certificate begins, so that a clock that is off by a day refuses them.
func TestGlobalSignWithItsClockOffByADayRefusesABeginningThatIsNow(t *testing.T) {
	t.Parallel()
	p := globalSignClient(t)
	p.sim.SetClock(-24 * time.Hour) // the token lives on
	a, err := p.order()
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, a.status)
	require.Contains(t, string(a.body), "validity.not_before")
	require.Empty(t, p.sim.Violations(), "the clock of the CA is not the client's")
	p.orders(0)
}

func TestAPartialOutageLeavesOtherOperationsAlone(t *testing.T) {
	t.Parallel()
	p := ecsClientOf(t)
	id := p.placed()
	p.set("submit", Fault{Kind: ServerError, Status: http.StatusBadGateway})
	a, err := p.order()
	require.NoError(t, err)
	require.Equal(t, http.StatusBadGateway, a.status)
	p.ask(http.StatusOK, p.poll, id)
	n, err := strconv.Atoi(id)
	require.NoError(t, err)
	require.Positive(t, n)
}

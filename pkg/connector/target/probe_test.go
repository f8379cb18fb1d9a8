package target_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/errs"
)

// talk serves connections: each gets the dialogue and then, if that consents, TLS.
func talk(t *testing.T, m target.Material, dialogue func(net.Conn, *bufio.Reader) bool) string {
	t.Helper()
	pair, err := tls.X509KeyPair(append(append([]byte{}, m.CertificatePEM...), m.ChainPEM...), []byte(m.Key.Reveal()))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if dialogue(c, bufio.NewReader(c)) {
				_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}).Handshake()
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// say is a dialogue of lines: what the server says, after what the client must have said.
func say(greeting string, turns ...string) func(net.Conn, *bufio.Reader) bool {
	return func(c net.Conn, r *bufio.Reader) bool {
		_, _ = io.WriteString(c, greeting)
		for i := 0; i+1 < len(turns); i += 2 {
			line, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, turns[i]) {
				return false
			}
			_, _ = io.WriteString(c, turns[i+1])
		}
		return true
	}
}

func postgres(answer string) func(net.Conn, *bufio.Reader) bool {
	return func(c net.Conn, r *bufio.Reader) bool {
		request := make([]byte, 8)
		_, err := io.ReadFull(r, request)
		if err != nil || string(request) != "\x00\x00\x00\x08\x04\xd2\x16\x2f" {
			return false
		}
		_, _ = io.WriteString(c, answer)
		return answer == "S"
	}
}

func verify(t *testing.T, endpoint target.Endpoint) (target.Served, error) {
	t.Helper()
	e, err := target.NewEngine(target.Config{JournalDir: t.TempDir(), Timeouts: target.Timeouts{Probe: 2 * time.Second}}, target.Deps{})
	require.NoError(t, err)
	return e.Verify(t.Context(), target.VerifyRequest{Endpoint: endpoint})
}

func TestServersThatStartInTheClearAreVerified(t *testing.T) {
	t.Parallel()
	m := targettest.NewAuthority(t).Issue(t, targettest.Name)
	for protocol, dialogue := range map[string]func(net.Conn, *bufio.Reader) bool{
		"":         func(net.Conn, *bufio.Reader) bool { return true },
		"smtp":     say("220-mail\r\n220 ready\r\n", "EHLO ", "250-mail\r\n250-PIPELINING\r\n250 STARTTLS\r\n", "STARTTLS\r\n", "220 go\r\n"),
		"imap":     say("* OK ready\r\n", "a1 STARTTLS\r\n", "* CAPABILITY x\r\na1 OK go\r\n"),
		"pop3":     say("+OK ready\r\n", "STLS\r\n", "+OK go\r\n"),
		"postgres": postgres("S"),
	} {
		got, err := verify(t, target.Endpoint{Address: talk(t, m, dialogue), StartTLS: protocol, ServerName: targettest.Name})
		require.NoError(t, err, protocol)
		require.Equal(t, targettest.Fingerprint(t, m), got.FingerprintSHA256)
		require.Len(t, got.Chain, 2)
		require.Equal(t, target.ByEndpoint, got.VerifiedBy)
		require.Equal(t, targettest.Name, got.ServerName)
	}
}

func TestServersThatRefuseTLSOrSpeakTooEarlyAreErrors(t *testing.T) {
	t.Parallel()
	m := targettest.NewAuthority(t).Issue(t, targettest.Name)
	for name, c := range map[string]struct {
		protocol string
		dialogue func(net.Conn, *bufio.Reader) bool
		want     string
	}{
		"smtp without STARTTLS": {"smtp", say("220 x\r\n", "EHLO ", "250 NOSTARTTLS\r\n"), "does not offer TLS"},
		"imap without STARTTLS": {"imap", say("* OK\r\n", "a1 STARTTLS", "a1 BAD no\r\n"), "does not offer TLS"},
		"pop3 without STLS":     {"pop3", say("+OK\r\n", "STLS", "-ERR\r\n"), "does not offer TLS"},
		"postgres without TLS":  {"postgres", postgres("N"), "does not offer TLS"},
		"bytes before TLS":      {"pop3", say("+OK\r\n", "STLS", "+OK\r\n+OK injected\r\n"), "between its consent"},
		"an endless greeting":   {"smtp", say(strings.Repeat("220-x\r\n", 20000)), "start TLS"},
	} {
		_, err := verify(t, target.Endpoint{Address: talk(t, m, c.dialogue), StartTLS: c.protocol})
		require.ErrorContains(t, err, c.want, name)
		require.Equal(t, errs.Unavailable, errs.KindOf(err), name)
	}
}

func TestAMissingIntermediateFailsTheDeploymentWithThatReason(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.ca.Issue(t, targettest.Name)
	alone := m
	alone.ChainPEM = nil
	b.limits.Verify = 300 * time.Millisecond
	r := b.request(t, m)
	r.Endpoint.Address = talk(t, alone, func(net.Conn, *bufio.Reader) bool { return true })
	result, err := b.engine(t).Deploy(t.Context(), r)
	require.Equal(t, "NOT_SERVED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "chain of 1 where 2 were written")
	require.Equal(t, target.OutcomeRolledBack, result.Outcome)
}

func TestAnEndpointThatNobodyAnswersIsAnError(t *testing.T) {
	t.Parallel()
	_, err := verify(t, target.Endpoint{Address: targettest.FreeAddress(t)})
	require.ErrorContains(t, err, "connect")
	require.Equal(t, errs.Unavailable, errs.KindOf(err))
}

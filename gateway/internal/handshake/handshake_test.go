package handshake_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/certctl/certctl/gateway/internal/handshake"
	"github.com/certctl/certctl/pkg/run"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves HTTP on a listener and gives its address, and what a client trusts.
func listen(t *testing.T) (address string, trust *tls.Config) {
	t.Helper()
	pattern := httptest.NewTLSServer(nil) // has a certificate
	pattern.Close()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg := &tls.Config{Certificates: pattern.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13}
	shaken := handshake.Listen(t.Context(), lis, handshake.Config{TLS: cfg.Clone(), Timeout: time.Minute, Log: zap.NewNop()})
	server := &http.Server{ReadHeaderTimeout: time.Minute, TLSConfig: cfg, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})}
	served := run.Go(func() error { return server.Serve(shaken) })
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	roots := pattern.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return lis.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

func TestBothVersionsOfHTTPAreServed(t *testing.T) {
	t.Parallel()
	address, trust := listen(t)
	for _, two := range []bool{true, false} {
		transport := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: two}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + address)
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		transport.CloseIdleConnections()
		require.Equal(t, map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[two], string(b))
	}
}

func TestWhoSpeaksPlainHTTPIsToldSo(t *testing.T) {
	t.Parallel()
	address, _ := listen(t)
	resp, err := (&http.Client{Timeout: time.Minute}).Get("http://" + address)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
}

func TestClientsThatNeverGoOnKeepNobodyOut(t *testing.T) {
	t.Parallel()
	address, trust := listen(t)
	for i := range 10 * runtime.GOMAXPROCS(0) {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer c.Close()
		if i%2 == 0 {
			continue // says nothing
		}
		// Says hello and reads no answer.
		first := tls.Client(&halfway{Conn: c}, &tls.Config{RootCAs: trust.RootCAs, ServerName: "example.com", NextProtos: []string{"h2"}})
		require.ErrorIs(t, first.Handshake(), io.ErrNoProgress)
	}
	own := trust.Clone()
	own.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", address, own)
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

// halfway writes and does not read.
type halfway struct{ net.Conn }

func (halfway) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestManyHandshakesAtOnceAllGetTheirTurn(t *testing.T) {
	t.Parallel()
	address, trust := listen(t)
	own := trust.Clone()
	own.NextProtos = []string{"h2"}
	var clients sync.WaitGroup
	problems := make(chan error, 200)
	for range 200 {
		clients.Go(func() {
			c, err := tls.Dial("tcp", address, own)
			if err == nil {
				err = c.Close()
			}
			problems <- err
		})
	}
	clients.Wait()
	close(problems)
	for err := range problems {
		require.NoError(t, err)
	}
}

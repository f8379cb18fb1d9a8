package caclient_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

func TestWhatFoundNoConnectionWasNotSent(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(200, "application/json", `{}`))
	closed := freeAddress(t)
	for name, edit := range map[string]func(*caclient.Config){
		"nobody listens":         func(c *caclient.Config) { c.BaseURL = "https://" + closed },
		"server is not trusted":  func(c *caclient.Config) { c.Settings.CAFile = "" },
		"proxy does not listen":  func(c *caclient.Config) { c.Settings.ProxyURL = "http://" + closed },
		"proxy refuses":          func(c *caclient.Config) { c.Settings.ProxyURL = refusingProxy(t) },
		"name does not resolve":  func(c *caclient.Config) { c.BaseURL = "https://ca.invalid" },
		"server speaks no HTTPS": func(c *caclient.Config) { c.BaseURL = "https://" + plainServer(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, server)
			edit(&cfg)
			asked, changed := outcomes(t, newClient(t, cfg))
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(asked), "%v", asked)
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(changed), "%v", changed)
		})
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func refusingProxy(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(answer(http.StatusProxyAuthRequired, "text/html", "<html>who are you</html>"))
	t.Cleanup(server.Close)
	return server.URL
}

func plainServer(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(answer(200, "application/json", `{}`))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestProxyOfTheSettingsIsUsed(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(200, "application/json", `{"a":1}`))
	var tunnels atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tunnels.Add(1)
		tunnel(t, w, r)
	}))
	t.Cleanup(proxy.Close)
	cfg := config(t, server)
	cfg.Settings.ProxyURL = proxy.URL
	client := newClient(t, cfg)
	_, err := client.JSON(t.Context(), question, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, tunnels.Load())
}

func tunnel(t testing.TB, w http.ResponseWriter, r *http.Request) {
	var d net.Dialer
	out, err := d.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	in, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	go pipe(in, out)
	pipe(out, in)
}

func pipe(to, from net.Conn) {
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
}

// A connection that fell idle may be gone without the client's knowledge: net/http then sends again what it may.
func TestNoChangeIsSentTwice(t *testing.T) {
	t.Parallel()
	var posts, gets atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posts.Add(1)
			panic(http.ErrAbortHandler)
		}
		gets.Add(1)
		answer(200, "application/json", `{}`)(w, r)
	}))
	server.StartTLS()
	t.Cleanup(server.Close)
	client := newClient(t, config(t, server))
	retriable := change
	retriable.Header = http.Header{"Idempotency-Key": {"1"}}
	for n := range 5 {
		_, err := client.JSON(account.Urgent(t.Context()), question, nil)
		require.NoError(t, err)
		server.CloseClientConnections()
		_, err = client.JSON(account.Urgent(t.Context()), retriable, nil)
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
		require.EqualValues(t, n+1, posts.Load())
	}
	require.EqualValues(t, 5, gets.Load())
}

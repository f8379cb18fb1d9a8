package caclient_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/secretbox"
)

const password = "correct-horse-battery"

var (
	question = caclient.Call{Method: http.MethodGet, Path: []string{"things", "7"}}
	change   = caclient.Call{Method: http.MethodPost, Path: []string{"things"}, Body: map[string]int{"a": 1}, Changes: true, Ref: issuer.Ref{"k": "v"}}
)

// pemFile writes the certificate of a server where ca_file wants it.
func pemFile(t testing.TB, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return file
}

func config(t testing.TB, server *httptest.Server) caclient.Config {
	t.Helper()
	return caclient.Config{
		BaseURL: server.URL + "/api", Settings: caclient.Settings{CAFile: pemFile(t, server), TimeoutSeconds: 20},
		Identity: []string{"us"}, CredentialField: "password", Secrets: []secretbox.Secret{secretbox.NewSecret(password)},
		Limits: account.Limits{PerSecond: 1000, Burst: 1000},
		Authorize: func(_ context.Context, h http.Header) error {
			h.Set("Password", password)
			return nil
		},
	}
}

func newClient(t testing.TB, c caclient.Config) *caclient.Client {
	t.Helper()
	client, err := caclient.New(c, issuer.Deps{})
	require.NoError(t, err)
	return client
}

func serve(t testing.TB, handler http.HandlerFunc) (*httptest.Server, *caclient.Client) {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server, newClient(t, config(t, server))
}

func answer(status int, media, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func outcomes(t testing.TB, client *caclient.Client) (asked, changed error) {
	t.Helper()
	var into map[string]any
	ctx := account.Urgent(t.Context())
	_, asked = client.JSON(ctx, question, &into)
	_, changed = client.JSON(ctx, change, &into)
	return asked, changed
}

func TestRequestIsAsTheCallSays(t *testing.T) {
	t.Parallel()
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.EscapedPath() != "/api/a%2Fb/c%3Fd" || r.URL.RawQuery != "q=1+2":
			answer(400, "application/json", fmt.Sprintf(`{"message":"path %s"}`, r.URL.EscapedPath()))(w, r)
		case r.Header.Get("Password") != password || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Accept") != "application/json":
			answer(400, "application/json", `{"message":"header"}`)(w, r)
		case !strings.HasPrefix(r.UserAgent(), "certctl/") || r.Header.Get("X-Extra") != "1" || r.ContentLength != 7:
			answer(400, "application/json", `{"message":"other header"}`)(w, r)
		default:
			answer(200, "application/json;charset=utf-8", `{"ok":true}`)(w, r)
		}
	})
	var into struct{ OK bool }
	_, err := client.JSON(t.Context(), caclient.Call{
		Method: http.MethodPost, Path: []string{"a/b", "c?d"}, Query: map[string][]string{"q": {"1 2"}}, Header: http.Header{"x-extra": {"1"}},
		Body: map[string]int{"a": 1},
	}, &into)
	require.NoError(t, err)
	require.True(t, into.OK)
}

func TestAnonymousCallsCarryNoCredentials(t *testing.T) {
	t.Parallel()
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer(200, "application/json", fmt.Sprintf(`{"password":%q}`, r.Header.Get("Password")))(w, r)
	})
	var into struct{ Password string }
	_, err := client.JSON(t.Context(), caclient.Call{Method: http.MethodGet, Path: []string{"login"}, Anonymous: true}, &into)
	require.NoError(t, err)
	require.Empty(t, into.Password)
}

func TestSegmentsThatChangeThePathAreRefused(t *testing.T) {
	t.Parallel()
	_, client := serve(t, answer(200, "application/json", `{}`))
	for _, segment := range []string{"", ".", "..", strings.Repeat("x", 600)} {
		_, err := client.JSON(t.Context(), caclient.Call{Method: http.MethodGet, Path: []string{"things", segment}}, nil)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), segment)
	}
}

func TestAnswersAreClassedByWhetherTheCallChangesSomething(t *testing.T) {
	t.Parallel()
	page := "<!DOCTYPE html><html><body>maintenance</body></html>"
	for _, c := range []struct {
		name          string
		handler       http.HandlerFunc
		asked, change issuer.Outcome
	}{
		{"500", answer(500, "application/json", `{}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"502 page", answer(502, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"408", answer(408, "application/json", `{}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"425", answer(425, "application/json", `{}`), issuer.OutcomeRetry, issuer.OutcomeRetry},
		{"429", answer(429, "application/json", `{}`), issuer.OutcomeRetry, issuer.OutcomeRetry},
		{"429 page", answer(429, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeRetry},
		{"301", answer(301, "text/html", page), issuer.OutcomePermanent, issuer.OutcomePermanent},
		{"302", answer(302, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"400", answer(400, "application/json", `{"message":"no"}`), issuer.OutcomeRetry, issuer.OutcomePermanent},
		{"400 without a body", answer(400, "application/json", ``), issuer.OutcomeRetry, issuer.OutcomePermanent},
		{"404", answer(404, "application/json", `{"message":"no"}`), issuer.OutcomeRetry, issuer.OutcomePermanent},
		{"409", answer(409, "application/json", `{"message":"no"}`), issuer.OutcomeRetry, issuer.OutcomePermanent},
		{"422", answer(422, "application/json", `{"message":"no"}`), issuer.OutcomeRetry, issuer.OutcomePermanent},
		{"401", answer(401, "application/json", `{"message":"no"}`), issuer.OutcomePermanent, issuer.OutcomePermanent},
		{"401 page", answer(401, "text/html", page), issuer.OutcomePermanent, issuer.OutcomePermanent},
		{"403 page", answer(403, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"404 page", answer(404, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"404 text", answer(404, "text/plain", "404 page not found"), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 page", answer(200, "text/html", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 page that says JSON", answer(200, "application/json", page), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 text", answer(200, "text/plain", `{"a":1}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 cut", answer(200, "application/json", `{"a":`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 doubled", answer(200, "application/json", `{"a":1}{"a":1}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 of another form", answer(200, "application/json", `[1]`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 without a body", answer(200, "application/json", ``), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"200 too long", answer(200, "application/json", `{"a":"`+strings.Repeat("x", caclient.MaxBody)+`"}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"400 too long", answer(400, "application/json", `{"a":"`+strings.Repeat("x", caclient.MaxBody)+`"}`), issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"truncated", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			answer(200, "application/json", `{"a":1}`)(w, r)
			panic(http.ErrAbortHandler)
		}, issuer.OutcomeRetry, issuer.OutcomeUnknown},
		{"cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, issuer.OutcomeRetry, issuer.OutcomeUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, client := serve(t, c.handler)
			asked, changed := outcomes(t, client)
			require.Error(t, asked)
			require.Error(t, changed)
			require.Equal(t, c.asked, issuer.OutcomeOf(asked), "question: %v", asked)
			require.Equal(t, c.change, issuer.OutcomeOf(changed), "change: %v", changed)
			for _, err := range []error{asked, changed} {
				require.Less(t, len(err.Error()), 400)
				require.NotContains(t, err.Error(), "<html")
				require.NotContains(t, err.Error(), "xxxx")
			}
			if lost, ok := issuer.AsUnknownOutcome(changed); ok {
				require.Equal(t, change.Ref, lost.Ref)
			}
		})
	}
}

func TestBodylessAnswersThatSayNothingElseArePassed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{202, 204} {
		_, client := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		into := map[string]any{"kept": true}
		resp, err := client.JSON(t.Context(), change, &into)
		require.NoError(t, err)
		require.Equal(t, status, resp.Status)
		require.Len(t, into, 1)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	asked, changed := outcomes(t, client)
	require.Error(t, asked)
	require.Error(t, changed)
	require.EqualValues(t, 2, calls.Load())
}

func TestWordsOfTheCAAreShortAndWithoutSecrets(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("word ", 1000)
	_, client := serve(t, answer(400, "application/json", fmt.Sprintf(`{"errors":[{"code":"bad|%s","message":"login\n\u202e %s %s"}]}`, password, password, long)))
	_, err := client.JSON(t.Context(), change, nil)
	e, ok := caclient.AsStatus(err)
	require.True(t, ok)
	require.Equal(t, "bad|***", e.Code)
	require.True(t, strings.HasPrefix(e.Message, "login *** word word"), e.Message)
	require.LessOrEqual(t, len([]rune(e.Message)), 201)
	require.NotContains(t, err.Error(), password)
}

func TestCallMapDecidesBeforeTheClientDoes(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(404, "application/json", `{"code":-1}`))
	cfg := config(t, server)
	cfg.Map = func(e *caclient.StatusError) error { return caclient.Refused("GENERAL", e) }
	client := newClient(t, cfg)
	reason := func(call caclient.Call) string {
		_, err := client.JSON(t.Context(), call, nil)
		p, ok := issuer.AsPermanent(err)
		require.True(t, ok)
		return p.Reason
	}
	require.Equal(t, "GENERAL", reason(question))
	special := question
	special.Map = func(e *caclient.StatusError) error {
		require.Equal(t, "-1", e.Code)
		return caclient.Refused("SPECIAL", e)
	}
	require.Equal(t, "SPECIAL", reason(special))
	special.Map = func(*caclient.StatusError) error { return nil }
	require.Equal(t, "GENERAL", reason(special))
}

func TestWrongCredentialsNameTheirSetting(t *testing.T) {
	t.Parallel()
	_, client := serve(t, answer(401, "application/json", `{}`))
	_, err := client.JSON(t.Context(), question, nil)
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, issuer.FaultConfiguration, p.Fault)
	require.Equal(t, "password", p.Field)
	other := question
	other.Field = "login"
	_, err = client.JSON(t.Context(), other, nil)
	p, _ = issuer.AsPermanent(err)
	require.Equal(t, "login", p.Field)
}

func TestContextThatEndedSendsNothing(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		answer(200, "application/json", `{}`)(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client.JSON(ctx, change, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	require.Zero(t, calls.Load())
}

func TestCallEndsWithItsTimeLimit(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server sees that a client left once it has read all of it
		<-r.Context().Done()
	})
	cfg := config(t, server)
	cfg.Settings.TimeoutSeconds = 1
	asked, changed := outcomes(t, newClient(t, cfg))
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(asked), "%v", asked)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(changed), "%v", changed)
}

func TestAccountIsToldHowCallsWent(t *testing.T) {
	t.Parallel()
	var status atomic.Int32
	status.Store(500)
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if status.Load() == 429 {
			w.Header().Set("Retry-After", "120")
		}
		answer(int(status.Load()), "application/json", `{}`)(w, r)
	})
	for range 5 {
		_, err := client.JSON(t.Context(), question, nil)
		require.Error(t, err)
	}
	require.Equal(t, account.Open, client.Account().State())
	_, err := client.JSON(t.Context(), change, nil)
	var busy *account.BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, account.BreakerOpen, busy.Reason)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "nothing was sent")
	after, ok := issuer.RetryDelay(err)
	require.True(t, ok)
	require.Equal(t, busy.After, after)

	status.Store(200)
	_, err = client.JSON(account.Urgent(t.Context()), question, nil)
	require.NoError(t, err)
	require.Equal(t, account.Closed, client.Account().State())
	status.Store(429)
	_, err = client.JSON(t.Context(), question, nil)
	after, _ = issuer.RetryDelay(err)
	require.Equal(t, 2*time.Minute, after)
	_, err = client.JSON(t.Context(), question, nil)
	require.ErrorAs(t, err, &busy)
	require.Equal(t, account.Throttled, busy.Reason)
}

func TestRefusalsDoNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	_, client := serve(t, answer(404, "application/json", `{}`))
	for range 10 {
		_, err := client.JSON(t.Context(), change, nil)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err))
		_, err = client.JSON(t.Context(), question, nil)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	}
	require.Equal(t, account.Closed, client.Account().State())
}

func TestIssuersOfOneAccountShareItsGuard(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(200, "application/json", `{}`))
	deps := issuer.Deps{Accounts: account.New(account.Config{})}
	guard := func(identity string) *account.Guard {
		cfg := config(t, server)
		cfg.Identity = []string{identity}
		client, err := caclient.New(cfg, deps)
		require.NoError(t, err)
		return client.Account()
	}
	first, again := guard("a"), guard("a")
	require.Same(t, first, again)
	require.NotSame(t, guard("a"), guard("b"))
	require.NotContains(t, guard("a-secret").Key(), "secret")
	require.NotEqual(t, caclient.AccountKey("u", "ab", "c"), caclient.AccountKey("u", "a", "bc"))
	require.Equal(t, caclient.AccountKey("https://CA.example.com/"), caclient.AccountKey("https://ca.example.com"))
}

func TestTestErrorNamesTheSettingThatHelps(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(404, "text/html", `<html></html>`))
	for field, edit := range map[string]func(*caclient.Config){
		"ca_file":  func(c *caclient.Config) { c.Settings.CAFile = "" },
		"base_url": func(*caclient.Config) {},
	} {
		cfg := config(t, server)
		edit(&cfg)
		client := newClient(t, cfg)
		_, err := client.JSON(t.Context(), question, nil)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
		p, ok := issuer.AsPermanent(client.TestError(err))
		require.True(t, ok)
		require.Equal(t, field, p.Field)
		require.Equal(t, issuer.FaultConfiguration, p.Fault)
	}
	_, client := serve(t, answer(500, "application/json", `{}`))
	_, err := client.JSON(t.Context(), question, nil)
	require.Equal(t, err, client.TestError(err), "trouble at the CA is no setting")
	require.NoError(t, client.TestError(nil))
}

func TestSettingsOfFilesAreToldByTheirName(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(200, "application/json", `{}`))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("nothing"), 0o600))
	for field, edit := range map[string]func(*caclient.Settings){
		"ca_file":          func(s *caclient.Settings) { s.CAFile = empty },
		"client_cert_file": func(s *caclient.Settings) { s.ClientCertFile, s.ClientKeyFile = empty, empty },
		"client_key_file":  func(s *caclient.Settings) { s.ClientCertFile, s.ClientKeyFile = empty, empty+".missing" },
	} {
		cfg := config(t, server)
		edit(&cfg.Settings)
		_, err := caclient.New(cfg, issuer.Deps{})
		p, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%v", err)
		require.Equal(t, field, p.Field)
	}
	cfg := config(t, server)
	cfg.BaseURL = "http://ca.example.com"
	_, err := caclient.New(cfg, issuer.Deps{})
	require.ErrorContains(t, err, "base_url")
	var p *issuer.PermanentError
	require.NotErrorAs(t, err, &p)
}

package e2e_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
)

// What the proxies in front of certctl are registered with at the provider.
const (
	clientID     = "certctl"
	clientSecret = "a secret of the proxy & the provider"
	password     = "a password of everybody"
)

// provider is a small OpenID provider: the authorization code flow of OpenID Connect Core 1.0, section 3.1, for one client,
// with PKCE (RFC 7636) that it insists on, and signatures by RS256.
type provider struct {
	url    string
	key    *rsa.PrivateKey
	groups map[string][]string // by user

	mu     sync.Mutex
	codes  map[string]grant
	access map[string]string // users by access token
}

// grant is what a code is good for, once.
type grant struct{ user, nonce, challenge, redirect string }

func startProvider(t *testing.T, ca *targettest.Authority, groups map[string][]string) *provider {
	t.Helper()
	p := &provider{key: rsaKey(t), groups: groups, codes: map[string]grant{}, access: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discover)
	mux.HandleFunc("GET /keys", p.showKeys)
	mux.HandleFunc("GET /authorize", p.askForPassword)
	mux.HandleFunc("POST /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", p.userinfo)
	server := httptest.NewUnstartedServer(mux)
	m := ca.Issue(t, "localhost")
	pair, err := tls.X509KeyPair(append(m.CertificatePEM, m.ChainPEM...), []byte(m.Key.Reveal()))
	require.NoError(t, err)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	p.url = "https://localhost:" + u.Port()
	return p
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	return key
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (p *provider) discover(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, map[string]any{
		"issuer": p.url, "authorization_endpoint": p.url + "/authorize", "token_endpoint": p.url + "/token", "userinfo_endpoint": p.url + "/userinfo",
		"jwks_uri": p.url + "/keys", "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"}, "code_challenge_methods_supported": []string{"S256"},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic"}, "scopes_supported": []string{"openid", "email", "groups"},
	})
}

func (p *provider) showKeys(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "one",
		"n": base64.RawURLEncoding.EncodeToString(p.key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(p.key.E)).Bytes()),
	}}})
}

var passwordPage = template.Must(template.New("").Parse(`<!doctype html><title>Log in</title>
<form method="post"><input name="user"><input name="password" type="password"><button>Log in</button></form>`))

// askForPassword shows a form whose answer goes to the same address, with all that the client has asked for.
func (p *provider) askForPassword(w http.ResponseWriter, r *http.Request) {
	if problem := requestProblem(r.URL.Query()); problem != "" {
		http.Error(w, problem, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = passwordPage.Execute(w, nil)
}

func requestProblem(q url.Values) string {
	switch {
	case q.Get("client_id") != clientID:
		return "another client"
	case q.Get("response_type") != "code":
		return "no code flow"
	case q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "":
		return "no PKCE"
	case q.Get("nonce") == "" || q.Get("state") == "":
		return "no nonce, or no state"
	case q.Get("redirect_uri") == "":
		return "no redirect_uri"
	default:
		return ""
	}
}

func (p *provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	user := r.PostFormValue("user")
	if _, known := p.groups[user]; requestProblem(q) != "" || !known || r.PostFormValue("password") != password {
		http.Error(w, "not you", http.StatusForbidden)
		return
	}
	code := rand.Text()
	p.mu.Lock()
	p.codes[code] = grant{user: user, nonce: q.Get("nonce"), challenge: q.Get("code_challenge"), redirect: q.Get("redirect_uri")}
	p.mu.Unlock()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		http.Error(w, "redirect_uri is no URL", http.StatusBadRequest)
		return
	}
	back.RawQuery = url.Values{"code": {code}, "state": {q.Get("state")}}.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

// redeem takes a code, which works once.
func (p *provider) redeem(code string) (grant, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, ok := p.codes[code]
	delete(p.codes, code)
	return g, ok
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	id, _ = url.QueryUnescape(id) // RFC 6749, section 2.3.1
	secret, _ = url.QueryUnescape(secret)
	if id != clientID || secret != clientSecret {
		answerJSON(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
		return
	}
	g, ok := p.redeem(r.PostFormValue("code"))
	verifier := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || r.PostFormValue("grant_type") != "authorization_code" || r.PostFormValue("redirect_uri") != g.redirect ||
		base64.RawURLEncoding.EncodeToString(verifier[:]) != g.challenge {
		answerJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	claims := p.claims(g.user)
	claims["nonce"] = g.nonce
	access := rand.Text()
	p.mu.Lock()
	p.access[access] = g.user
	p.mu.Unlock()
	answerJSON(w, http.StatusOK, map[string]any{
		"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": signed(p.key, claims),
	})
}

func (p *provider) userinfo(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	user, ok := p.access[trimBearer(r.Header.Get("Authorization"))]
	p.mu.Unlock()
	if !ok {
		answerJSON(w, http.StatusUnauthorized, map[string]string{"error": "invalid_token"})
		return
	}
	answerJSON(w, http.StatusOK, map[string]any{"sub": "sub-" + user, "email": user + "@example.com", "email_verified": true, "groups": p.groups[user]})
}

func trimBearer(header string) string {
	const scheme = "Bearer "
	if len(header) < len(scheme) {
		return ""
	}
	return header[len(scheme):]
}

// claims are those of an ID token for the client.
func (p *provider) claims(user string) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": p.url, "aud": clientID, "sub": "sub-" + user, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"email": user + "@example.com", "email_verified": true, "groups": slices.Clone(p.groups[user]),
	}
}

// signed makes a JWS in compact form (RFC 7515, section 7.1). Without a key it has the algorithm "none".
func signed(key *rsa.PrivateKey, claims map[string]any) string {
	header := map[string]string{"typ": "JWT", "alg": "none"}
	if key != nil {
		header["alg"], header["kid"] = "RS256", "one"
	}
	input := segment(header) + "." + segment(claims)
	if key == nil {
		return input + "."
	}
	sum := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err) // the key is ours
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func segment(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

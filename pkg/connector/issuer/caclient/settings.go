package caclient

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	defaultTimeout = 30 * time.Second
	maxTimeout     = 5 * time.Minute
)

// Settings are those of every CA that is reached over HTTPS. Connectors embed them in their own.
type Settings struct {
	// CAFile is an absolute path of PEM certificates: they, and no others, vouch for the CA's server. It is read again
	// when it changes. Empty: the system's.
	CAFile string `json:"ca_file,omitempty"`
	// ClientCertFile and ClientKeyFile are absolute paths of the PEM pair for mTLS. They are read again when they change;
	// while they do not match, as in the middle of being written, the pair before stays in use.
	ClientCertFile string `json:"client_cert_file,omitempty"`
	ClientKeyFile  string `json:"client_key_file,omitempty"`
	// ProxyURL is an http, https or socks5 proxy without credentials. Empty: HTTPS_PROXY and NO_PROXY of the environment.
	ProxyURL string `json:"proxy_url,omitempty"`
	// TimeoutSeconds bounds one call (30).
	TimeoutSeconds int `json:"timeout_seconds,omitempty"`
	// RequestsPerSecond, Burst and MaxConcurrentRequests bound the calls of the account. Zero: the connector's default.
	RequestsPerSecond     float64 `json:"requests_per_second,omitempty"`
	Burst                 int     `json:"burst,omitempty"`
	MaxConcurrentRequests int     `json:"max_concurrent_requests,omitempty"`
}

// Check judges the settings without touching the disk.
func (s Settings) Check(v *errs.Violations) {
	checkPath(v, "ca_file", s.CAFile)
	checkPath(v, "client_cert_file", s.ClientCertFile)
	checkPath(v, "client_key_file", s.ClientKeyFile)
	switch {
	case s.ClientCertFile != "" && s.ClientKeyFile == "":
		v.Add("client_key_file", "is needed with client_cert_file")
	case s.ClientCertFile == "" && s.ClientKeyFile != "":
		v.Add("client_cert_file", "is needed with client_key_file")
	}
	s.checkProxy(v)
	if n := s.TimeoutSeconds; n < 0 || n > int(maxTimeout.Seconds()) {
		v.Add("timeout_seconds", "%d is not from 1 to %d, or 0 for %d", n, int(maxTimeout.Seconds()), int(defaultTimeout.Seconds()))
	}
	if n := s.RequestsPerSecond; !(n >= 0 && n <= 1000) {
		v.Add("requests_per_second", "%v is not from 0 to 1000", n)
	}
	if n := s.Burst; n < 0 || n > 10_000 {
		v.Add("burst", "%d is not from 0 to 10000", n)
	}
	if n := s.MaxConcurrentRequests; n < 0 || n > 1000 {
		v.Add("max_concurrent_requests", "%d is not from 0 to 1000", n)
	}
}

func checkPath(v *errs.Violations, field, path string) {
	if path != "" && !filepath.IsAbs(path) {
		v.Add(field, "%q is not an absolute path", path)
	}
}

func (s Settings) checkProxy(v *errs.Violations) {
	if s.ProxyURL == "" {
		return
	}
	u, err := url.Parse(s.ProxyURL)
	switch {
	case err != nil:
		v.Add("proxy_url", "is no URL") // the text of the error would show it, and maybe a password
	case u.User != nil:
		v.Add("proxy_url", "holds credentials: these settings are shown; give such a proxy by HTTPS_PROXY in the environment")
	case u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5":
		v.Add("proxy_url", "is no http, https or socks5 URL with a host")
	}
}

// CheckURL judges the address of an API and gives it parsed, nil if it is none: https without credentials, query and
// fragment.
func CheckURL(v *errs.Violations, field, raw string) *url.URL {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		v.Add(field, "is needed")
	case err != nil || len(raw) > 1024:
		v.Add(field, "is no URL")
	case u.User != nil:
		v.Add(field, "holds credentials: give them by the settings that are secrets")
	case u.Scheme != "https" || u.Hostname() == "":
		v.Add(field, "is no https URL with a host")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		v.Add(field, "ends with a query or fragment")
	default:
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
		return u
	}
	return nil
}

func (s Settings) timeout() time.Duration {
	if s.TimeoutSeconds == 0 {
		return defaultTimeout
	}
	return time.Duration(s.TimeoutSeconds) * time.Second
}

func (s Settings) limits(defaults account.Limits) account.Limits {
	l := account.Limits{PerSecond: s.RequestsPerSecond, Burst: s.Burst, Concurrency: s.MaxConcurrentRequests}
	if l.PerSecond == 0 {
		l.PerSecond = defaults.PerSecond
	}
	if l.Burst == 0 {
		l.Burst = defaults.Burst
	}
	if l.Concurrency == 0 {
		l.Concurrency = defaults.Concurrency
	}
	return l
}

// AccountKey names the account that identity has at endpoint. It is a hash, so that it may be logged and stored.
func AccountKey(endpoint string, identity ...string) string {
	h := sha256.New()
	for _, part := range append([]string{strings.ToLower(strings.TrimRight(endpoint, "/"))}, identity...) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// CheckHeaderSecret refuses a secret that cannot be sent as a header, such as one with the end of a line that it was read
// from a file with. The error is a PermanentError with FaultConfiguration and does not show it.
func CheckHeaderSecret(field string, secret secretbox.Secret) error {
	if httpguts.ValidHeaderFieldValue(secret.Reveal()) {
		return nil
	}
	return misconfigured("SECRET_NOT_SENDABLE", field, "the secret holds a control character, such as the end of a line", nil)
}

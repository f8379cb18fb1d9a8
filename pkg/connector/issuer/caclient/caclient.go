// Package caclient is the HTTP core of the connectors to commercial CAs: JSON over HTTPS, through the guard of the CA
// account, with every byte and every second bounded. What it adds to net/http is that each error says what the caller has
// to do (package issuer): whether the CA did nothing, will do nothing, or may have acted.
//
// A connector makes one Client and describes each request by a Call. Call.Changes is the most important field of it: a
// submit or a revocation changes something at the CA, a question does not.
//
//	what happened                                 a question          a change
//	nothing was sent (dial, TLS, proxy, guard)    RetryError          RetryError
//	the reply was lost, cut, late, unreadable     RetryError          UnknownOutcomeError
//	429                                           RetryError          RetryError
//	5xx, 408, 302, 303, 307                       RetryError          UnknownOutcomeError
//	4xx that is not the CA's JSON (HTML)          RetryError          UnknownOutcomeError
//	client certificate refused in the handshake   PermanentError      PermanentError     FaultConfiguration
//	401, 403, 301, 308                            PermanentError      PermanentError     FaultConfiguration
//	other 4xx                                     RetryError          PermanentError     FaultRequest
//
// Call.Map and Config.Map may decide otherwise about a 4xx that is the CA's own answer. The *StatusError stays in the chain
// of each error that an answer caused, for errors.As.
//
// HTTP/2 is not used, and a change gets a connection of its own: so nothing is sent again behind our back, and a request
// that found no connection is known not to have been sent.
package caclient

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/version"
)

// MaxBody is the most bytes of an answer, where a call does not say.
const MaxBody = 1 << 20

// Config of a client.
type Config struct {
	// BaseURL is what the paths of calls are put behind: https, without query.
	BaseURL string
	// BaseURLField is the setting that BaseURL came from; "base_url" if empty.
	BaseURLField string
	// Settings are those that all connectors share.
	Settings Settings
	// Identity is what the account is known by at the CA (API key, login, customer). Issuers with the same BaseURL and
	// Identity share one guard. Only a hash of it is kept.
	Identity []string
	// Limits are the CA's, for fields that Settings leave zero.
	Limits account.Limits
	// Authorize puts the credentials into a request, and may fetch a token for it by an Anonymous call. Its errors are
	// returned as they are. Nil: there is nothing to put in.
	Authorize func(ctx context.Context, h http.Header) error
	// CredentialField is the setting that is at fault when the CA refuses the credentials.
	CredentialField string
	// Secrets are masked where the CA repeats them in its errors.
	Secrets []secretbox.Secret
	// ReadError finds the CA's own code and sentence in the JSON of an error; nil: the function ReadError, which knows
	// the usual forms.
	ReadError func(body []byte) (code, message string, ok bool)
	// Map decides about a 4xx of the CA; nil, or a nil result, leaves it to the table above. It is not asked about 408
	// and 429.
	Map func(e *StatusError) error
}

// Client makes calls to one CA with one account. It is safe for concurrent use.
type Client struct {
	cfg     Config
	base    *url.URL
	timeout time.Duration
	guard   *account.Guard
	dialler *dialler
	now     func() time.Time
	agent   string
}

// New makes a client and reads the files of its settings. The error is an errs.Invalid for settings that cannot be, and a
// PermanentError with FaultConfiguration for files that cannot be used.
func New(cfg Config, d issuer.Deps) (*Client, error) {
	if cfg.BaseURLField == "" {
		cfg.BaseURLField = "base_url"
	}
	if cfg.ReadError == nil {
		cfg.ReadError = ReadError
	}
	var v errs.Violations
	base := CheckURL(&v, cfg.BaseURLField, cfg.BaseURL)
	cfg.Settings.Check(&v)
	if err := v.Err(); err != nil {
		return nil, err
	}
	dialler, err := newDialler(cfg.Settings)
	if err != nil {
		return nil, err
	}
	accounts := d.Accounts
	if accounts == nil {
		accounts = account.New(account.Config{})
	}
	guard := accounts.Guard(AccountKey(cfg.BaseURL, cfg.Identity...), cfg.Settings.limits(cfg.Limits))
	return &Client{
		cfg: cfg, base: base, timeout: cfg.Settings.timeout(), guard: guard, dialler: dialler, now: d.Clock(),
		agent: "certctl/" + version.Version,
	}, nil
}

// Account gives the guard that all calls go through.
func (c *Client) Account() *account.Guard { return c.guard }

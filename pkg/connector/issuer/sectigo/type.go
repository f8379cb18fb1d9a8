package sectigo

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// BaseURL is that of the instance that most customers have.
const BaseURL = "https://cert-manager.com/api"

const (
	fieldPassword   = "password"
	fieldClientCert = "client_cert_file"

	defaultLookupSettle      = 120
	defaultReplacementSettle = 6 * 3600
	maxLookupSettle          = 24 * 3600
	maxTerm                  = 6 * 366
	maxText                  = 256
	// anyServer is "other" among the kinds of servers.
	anyServer = -1
)

// The values of Settings.Renewal.
const (
	// RenewalAuto replaces a certificate that is valid for a good while still, and orders a new one otherwise.
	RenewalAuto = "auto"
	// RenewalNew always places a new order.
	RenewalNew = "new_order"
)

// Settings of a Sectigo issuer in the API. The secret is password; without it, the client certificate logs in.
type Settings struct {
	BaseURL     string `json:"base_url,omitempty"`
	CustomerURI string `json:"customer_uri"`
	Login       string `json:"login"`
	// OrganizationID and CertificateProfileID are orgId and certType of the API.
	OrganizationID       int64 `json:"organization_id"`
	CertificateProfileID int64 `json:"certificate_profile_id"`
	// Term is in days and one of the profile's; 0: the longest of the profile's that is not longer than what is asked for.
	Term int `json:"term,omitempty"`
	// ServerType is serverType of the API; -1 (other) if it is not set.
	ServerType *int `json:"server_type,omitempty"`
	// CustomFields are the values of the fields that the account demands, by name.
	CustomFields map[string]string `json:"custom_fields,omitempty"`
	// ExternalRequester is one or more e-mail addresses that SCM notifies.
	ExternalRequester string `json:"external_requester,omitempty"`
	// CollectFormat is the format that certificates are fetched in; x509 if empty.
	CollectFormat string `json:"collect_format,omitempty"`
	Renewal       string `json:"renewal,omitempty"`
	// LookupSettleSeconds is how long after its submission an order that is not in the list may still appear.
	LookupSettleSeconds int `json:"lookup_settle_seconds,omitempty"`
	// ReplacementSettleSeconds is how long after its submission a replacement may still appear under the sslId of the
	// certificate that it replaces: SCM shows nothing of the request until the new certificate is on its way, and one that is
	// placed a second time may replace the first.
	ReplacementSettleSeconds int `json:"replacement_settle_seconds,omitempty"`

	caclient.Settings
}

// Type describes Sectigo issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		SecretFields: []string{fieldPassword},
		Validate: func(raw json.RawMessage, secretsSet []string) error {
			_, err := ParseSettings(raw, secretsSet)
			return err
		},
		New: func(_ context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
			i, err := New(c, d)
			if err != nil {
				return nil, err
			}
			return i, nil
		},
	}
}

// ParseSettings reads and judges settings and fills in the defaults. The error is an errs.Invalid.
func ParseSettings(raw json.RawMessage, secretsSet []string) (Settings, error) {
	var s Settings
	if err := issuer.Decode(raw, &s); err != nil {
		return Settings{}, err
	}
	s.setDefaults()
	var v errs.Violations
	caclient.CheckURL(&v, "base_url", s.BaseURL)
	s.checkLogin(&v, slices.Contains(secretsSet, fieldPassword))
	s.checkOrder(&v)
	s.checkChoices(&v)
	s.Check(&v)
	return s, v.Err()
}

func (s *Settings) setDefaults() {
	if s.BaseURL == "" {
		s.BaseURL = BaseURL
	}
	if s.CollectFormat == "" {
		s.CollectFormat = "x509"
	}
	if s.Renewal == "" {
		s.Renewal = RenewalAuto
	}
	if s.ReplacementSettleSeconds == 0 {
		s.ReplacementSettleSeconds = defaultReplacementSettle
	}
	if s.LookupSettleSeconds == 0 {
		s.LookupSettleSeconds = defaultLookupSettle
	}
}

func (s Settings) checkLogin(v *errs.Violations, password bool) {
	checkText(v, "customer_uri", s.CustomerURI, true)
	checkText(v, "login", s.Login, true)
	if !password && s.ClientCertFile == "" {
		v.Add(fieldPassword, "is needed, or client_cert_file and client_key_file")
	}
}

// checkText keeps what goes into headers and fields of the API to printable characters.
func checkText(v *errs.Violations, field, text string, needed bool) {
	switch {
	case text == "" && needed:
		v.Add(field, "is needed")
	case len(text) > maxText:
		v.Add(field, "has %d characters: the most is %d", len(text), maxText)
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		v.Add(field, "holds a control character")
	}
}

func (s Settings) checkOrder(v *errs.Violations) {
	if s.OrganizationID <= 0 {
		v.Add("organization_id", "is needed")
	}
	if s.CertificateProfileID <= 0 {
		v.Add("certificate_profile_id", "is needed: the id of a certificate profile, which is never 0")
	}
	if s.Term < 0 || s.Term > maxTerm {
		v.Add("term", "%d is not from 1 to %d days, or 0", s.Term, maxTerm)
	}
	if s.ServerType != nil && *s.ServerType < anyServer {
		v.Add("server_type", "%d is no kind of server", *s.ServerType)
	}
	if n := s.ReplacementSettleSeconds; n < 0 || n > maxLookupSettle {
		v.Add("replacement_settle_seconds", "%d is not from 1 to %d, or 0 for %d", n, maxLookupSettle, defaultReplacementSettle)
	}
	if n := s.LookupSettleSeconds; n < 0 || n > maxLookupSettle {
		v.Add("lookup_settle_seconds", "%d is not from 1 to %d, or 0 for %d", n, maxLookupSettle, defaultLookupSettle)
	}
	checkText(v, "external_requester", s.ExternalRequester, false)
	for name, value := range s.CustomFields {
		checkText(v, "custom_fields", name, true)
		checkText(v, "custom_fields", value, false)
	}
}

func (s Settings) checkChoices(v *errs.Violations) {
	choose := func(field, value string, from ...string) {
		if !slices.Contains(from, value) {
			v.Add(field, "%q is not one of %s", value, strings.Join(from, ", "))
		}
	}
	choose("renewal", s.Renewal, RenewalAuto, RenewalNew)
	// Formats that hold the certificate with what is above it.
	choose("collect_format", s.CollectFormat, "x509", "x509R", "pem", "pemia", "base64", "bin")
}

// limits are ours: Sectigo publishes none.
func limits() account.Limits { return account.Limits{PerSecond: 5, Burst: 20, Concurrency: 4} }

// New makes an issuer. Errors are those of ParseSettings or of package issuer.
func New(c issuer.Config, d issuer.Deps) (*Issuer, error) {
	password := c.Secrets[fieldPassword]
	var set []string
	if !password.IsZero() {
		set = append(set, fieldPassword)
	}
	s, err := ParseSettings(c.Settings, set)
	if err != nil {
		return nil, err
	}
	if err := caclient.CheckHeaderSecret(fieldPassword, password); err != nil {
		return nil, err
	}
	config := caclient.Config{
		BaseURL: s.BaseURL, Settings: s.Settings, Identity: []string{s.CustomerURI, s.Login}, Limits: limits(),
		CredentialField: fieldPassword, Secrets: []secretbox.Secret{password}, Map: refusal,
		Authorize: func(_ context.Context, h http.Header) error {
			// The CA documents these names in lower and mixed case; HTTP does not tell them apart.
			h.Set("login", s.Login)
			h.Set("customerUri", s.CustomerURI)
			if !password.IsZero() {
				h.Set("password", password.Reveal())
			}
			return nil
		},
	}
	if password.IsZero() {
		config.CredentialField = fieldClientCert
		if config.BaseURL, err = private(s.BaseURL); err != nil {
			return nil, err
		}
	}
	client, err := caclient.New(config, d)
	if err != nil {
		return nil, err
	}
	return &Issuer{settings: s, client: client, now: d.Clock()}, nil
}

// private gives the address for logins by client certificate: …/private/api instead of …/api.
func private(base string) (string, error) {
	u, err := url.Parse(strings.TrimRight(base, "/"))
	if err != nil {
		return "", errs.Field("base_url", "is no URL")
	}
	before, ok := strings.CutSuffix(u.Path, "/api")
	switch {
	case strings.HasSuffix(before, "/private"):
	case ok:
		u.Path = before + "/private/api"
	default:
		u.Path += "/private"
	}
	return u.String(), nil
}

func (s Settings) replacementSettle() time.Duration {
	return time.Duration(s.ReplacementSettleSeconds) * time.Second
}

func (s Settings) settle() time.Duration { return time.Duration(s.LookupSettleSeconds) * time.Second }

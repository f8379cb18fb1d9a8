package entrustecs

import (
	"context"
	"encoding/json"
	"net/mail"
	"regexp"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
)

// fieldKey is the secret among the settings.
const fieldKey = "api_key"

const (
	defaultBaseURL      = "https://api.entrust.net/enterprise/v2"
	defaultClientID     = 1
	defaultLookupSettle = 900
	maxLookupSettle     = 24 * 3600
	maxText             = 256
	maxEmails           = 8
)

// The values of Settings.Renewal.
const (
	renewalAuto    = "auto"
	renewalNew     = "new"
	renewalRenew   = "renew"
	renewalReissue = "reissue"
)

// Settings are an Entrust Certificate Services issuer's settings in the API.
type Settings struct {
	caclient.Settings
	// BaseURL is the address of the API, with or without the /v2 at its end (https://api.entrust.net/enterprise/v2).
	BaseURL string `json:"base_url,omitempty"`
	// Username is that of the API user; its key is the secret api_key.
	Username string `json:"username"`
	// CertType is the product, such as STANDARD_SSL, ADVANTAGE_SSL, UC_SSL, EV_SSL, WILDCARD_SSL or PRIVATE_SSL.
	CertType string `json:"cert_type"`
	// ClientID is the client of the account (1, the primary one). Organization is one of the primary client's.
	ClientID     int    `json:"client_id,omitempty"`
	Organization string `json:"organization,omitempty"`
	// RequesterName, RequesterEmail and RequesterPhone are wanted by Entrust with each request.
	RequesterName    string   `json:"requester_name"`
	RequesterEmail   string   `json:"requester_email"`
	RequesterPhone   string   `json:"requester_phone"`
	AdditionalEmails []string `json:"additional_emails,omitempty"`
	// QueueForApproval has each new request wait for an approver at Entrust.
	QueueForApproval bool `json:"queue_for_approval,omitempty"`
	// CTLog says whether certificates are logged publicly; unset: as the account has it.
	CTLog *bool `json:"ct_log,omitempty"`
	// Renewal is how a certificate is renewed: "auto" (a renewal at Entrust when the one before is at least 30 days old, a
	// new order otherwise), "new", "renew", or "reissue", by which Entrust revokes the one before.
	Renewal string `json:"renewal,omitempty"`
	// LookupSettleSeconds is how long after an order Entrust may need to list it: until then, an order whose reply was lost
	// counts as neither there nor missing (900).
	LookupSettleSeconds int `json:"lookup_settle_seconds,omitempty"`
}

// Type describes Entrust Certificate Services issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		SecretFields: []string{fieldKey},
		Validate: func(raw json.RawMessage, secretsSet []string) error {
			_, err := ParseSettings(raw, secretsSet)
			return err
		},
		New: newFromSettings,
	}
}

// ParseSettings reads and judges settings. The error is an errs.Invalid.
func ParseSettings(raw json.RawMessage, secretsSet []string) (Settings, error) {
	var s Settings
	if err := issuer.Decode(raw, &s); err != nil {
		return Settings{}, err
	}
	s.setDefaults()
	var v errs.Violations
	caclient.CheckURL(&v, "base_url", s.BaseURL)
	s.Check(&v)
	if !slices.Contains(secretsSet, fieldKey) {
		v.Add(fieldKey, "is needed")
	}
	s.checkAccount(&v)
	s.checkRequester(&v)
	if !slices.Contains([]string{renewalAuto, renewalNew, renewalRenew, renewalReissue}, s.Renewal) {
		v.Add("renewal", "%q is none of auto, new, renew and reissue", s.Renewal)
	}
	if n := s.LookupSettleSeconds; n < 0 || n > maxLookupSettle {
		v.Add("lookup_settle_seconds", "%d is not from 1 to %d, or 0 for %d", n, maxLookupSettle, defaultLookupSettle)
	}
	return s, v.Err()
}

// setDefaults fills in what is not given. The version in the address is ours to say, so one at its end is taken off.
func (s *Settings) setDefaults() {
	if s.BaseURL == "" {
		s.BaseURL = defaultBaseURL
	}
	s.BaseURL = strings.TrimRight(strings.TrimSuffix(strings.TrimRight(s.BaseURL, "/"), "/v2"), "/")
	if s.ClientID == 0 {
		s.ClientID = defaultClientID
	}
	if s.Renewal == "" {
		s.Renewal = renewalAuto
	}
	if s.LookupSettleSeconds == 0 {
		s.LookupSettleSeconds = defaultLookupSettle
	}
}

// certTypeForm is that of the products' names. Which there are is for Entrust to say.
var certTypeForm = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)

func (s Settings) checkAccount(v *errs.Violations) {
	switch {
	case s.Username == "":
		v.Add("username", "is needed")
	case len(s.Username) > maxText || strings.ContainsAny(s.Username, ":\r\n\x00"):
		v.Add("username", "has more than %d characters, or a colon or line break", maxText)
	}
	switch {
	case s.CertType == "":
		v.Add("cert_type", "is needed, such as STANDARD_SSL")
	case !certTypeForm.MatchString(s.CertType):
		v.Add("cert_type", "%q is not the name of a product, such as STANDARD_SSL", s.CertType)
	}
	if s.ClientID < 1 {
		v.Add("client_id", "%d is not 1 or more", s.ClientID)
	}
	if s.Organization != "" && s.ClientID != defaultClientID && s.CertType != "PD_SSL" {
		v.Add("organization", "can be given for the primary client (1) only: others have one organization each")
	}
	if len(s.Organization) > maxText {
		v.Add("organization", "has %d characters: the most is %d", len(s.Organization), maxText)
	}
}

func (s Settings) checkRequester(v *errs.Violations) {
	for _, each := range []struct{ field, value string }{
		{"requester_name", s.RequesterName}, {"requester_email", s.RequesterEmail}, {"requester_phone", s.RequesterPhone},
	} {
		switch {
		case each.value == "":
			v.Add(each.field, "is needed: Entrust wants it with each request")
		case len(each.value) > maxText:
			v.Add(each.field, "has %d characters: the most is %d", len(each.value), maxText)
		}
	}
	if s.RequesterEmail != "" && !isEmail(s.RequesterEmail) {
		v.Add("requester_email", "%q is no email address", s.RequesterEmail)
	}
	if len(s.AdditionalEmails) > maxEmails || slices.ContainsFunc(s.AdditionalEmails, func(e string) bool { return !isEmail(e) }) {
		v.Add("additional_emails", "has more than %d entries, or one that is no email address", maxEmails)
	}
}

func isEmail(s string) bool {
	a, err := mail.ParseAddress(s)
	return err == nil && a.Address == s && len(s) <= maxText
}

func newFromSettings(_ context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
	var set []string
	for name, value := range c.Secrets {
		if !value.IsZero() {
			set = append(set, name)
		}
	}
	s, err := ParseSettings(c.Settings, set)
	if err != nil {
		return nil, err
	}
	i, err := New(s, c.Secrets[fieldKey], d)
	if err != nil {
		return nil, err
	}
	return i, nil
}

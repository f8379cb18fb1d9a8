package digicert

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Addresses of the two instances of CertCentral.
const (
	BaseURL   = "https://www.digicert.com/services/v2"
	BaseURLEU = "https://certcentral.digicert.eu/services/v2"
)

const (
	fieldAPIKey = "api_key"

	defaultLookupSettle = 120
	maxLookupSettle     = 24 * 3600
	// privatePrefix begins the names of products of private CAs, which are free of the limits of public ones.
	privatePrefix = "private_"
)

// The values of Settings.Renewal.
const (
	// RenewalAuto re-issues while the order is paid for long enough, and then places a renewal order.
	RenewalAuto = "auto"
	// RenewalOrder always places a renewal order.
	RenewalOrder = "renewal_order"
	// RenewalNew always places an order that has nothing to do with the one before.
	RenewalNew = "new_order"
)

// Settings of a DigiCert issuer in the API. The secret is api_key.
type Settings struct {
	BaseURL        string `json:"base_url,omitempty"`
	OrganizationID int64  `json:"organization_id,omitempty"`
	ProductNameID  string `json:"product_name_id"`
	ContainerID    int64  `json:"container_id,omitempty"`
	CACertID       string `json:"ca_cert_id,omitempty"`
	ProfileOption  string `json:"profile_option,omitempty"`
	// SkipApproval asks for orders, re-issues and revocations without the approval of an administrator. The key has to
	// be an administrator's.
	SkipApproval bool `json:"skip_approval,omitempty"`
	// OrderValidityYears or OrderValidityDays is how long an order is paid for; 1 year if neither is set.
	OrderValidityYears int `json:"order_validity_years,omitempty"`
	OrderValidityDays  int `json:"order_validity_days,omitempty"`
	// MaxValidityDays bounds a certificate; 0: what public CAs may issue today, nothing for products that begin with
	// "private_".
	MaxValidityDays int    `json:"max_validity_days,omitempty"`
	PaymentMethod   string `json:"payment_method,omitempty"`
	DCVMethod       string `json:"dcv_method,omitempty"`
	Renewal         string `json:"renewal,omitempty"`
	// LookupSettleSeconds is how long after its submission an order that is not in the list may still appear.
	LookupSettleSeconds int `json:"lookup_settle_seconds,omitempty"`

	caclient.Settings
}

// Type describes DigiCert issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		SecretFields: []string{fieldAPIKey},
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
	if !slices.Contains(secretsSet, fieldAPIKey) {
		v.Add(fieldAPIKey, "is needed")
	}
	s.checkProduct(&v)
	s.checkValidity(&v)
	s.checkChoices(&v)
	s.Check(&v)
	return s, v.Err()
}

func (s *Settings) setDefaults() {
	if s.BaseURL == "" {
		s.BaseURL = BaseURL
	}
	if s.OrderValidityYears == 0 && s.OrderValidityDays == 0 {
		s.OrderValidityYears = 1
	}
	if s.Renewal == "" {
		s.Renewal = RenewalAuto
	}
	if s.LookupSettleSeconds == 0 {
		s.LookupSettleSeconds = defaultLookupSettle
	}
}

var word = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (s Settings) checkProduct(v *errs.Violations) {
	switch {
	case s.ProductNameID == "":
		v.Add("product_name_id", "is needed, such as ssl_basic")
	case !word.MatchString(s.ProductNameID):
		v.Add("product_name_id", "is no product identifier, such as ssl_basic")
	case s.OrganizationID == 0 && !domainValidated(s.ProductNameID):
		v.Add("organization_id", "is needed for %s", s.ProductNameID)
	}
	checkID(v, "organization_id", s.OrganizationID)
	checkID(v, "container_id", s.ContainerID)
	checkWord(v, "ca_cert_id", s.CACertID)
	checkWord(v, "profile_option", s.ProfileOption)
}

func checkID(v *errs.Violations, field string, id int64) {
	if id < 0 {
		v.Add(field, "%d is no id", id)
	}
}

func checkWord(v *errs.Violations, field, text string) {
	if text != "" && !word.MatchString(text) {
		v.Add(field, "has other characters than letters, digits, - and _, or more than 64 of them")
	}
}

// domainValidated tells whether orders of a product carry no organisation.
func domainValidated(product string) bool { return strings.HasPrefix(product, "ssl_dv_") }

func (s Settings) checkValidity(v *errs.Violations) {
	switch {
	case s.OrderValidityYears != 0 && s.OrderValidityDays != 0:
		v.Add("order_validity_days", "leave one of order_validity_years and order_validity_days out")
	case s.OrderValidityYears < 0 || s.OrderValidityYears > 6:
		v.Add("order_validity_years", "%d is not from 1 to 6", s.OrderValidityYears)
	case s.OrderValidityDays < 0 || s.OrderValidityDays > 6*366:
		v.Add("order_validity_days", "%d is not from 1 to %d", s.OrderValidityDays, 6*366)
	}
	if n := s.MaxValidityDays; n < 0 || n > 6*366 {
		v.Add("max_validity_days", "%d is not from 1 to %d, or 0", n, 6*366)
	}
	if n := s.LookupSettleSeconds; n < 0 || n > maxLookupSettle {
		v.Add("lookup_settle_seconds", "%d is not from 1 to %d, or 0 for %d", n, maxLookupSettle, defaultLookupSettle)
	}
}

func (s Settings) checkChoices(v *errs.Violations) {
	choose := func(field, value string, from ...string) {
		if value != "" && !slices.Contains(from, value) {
			v.Add(field, "%q is not one of %s", value, strings.Join(from, ", "))
		}
	}
	choose("payment_method", s.PaymentMethod, "balance", "profile")
	choose("dcv_method", s.DCVMethod, "email", "dns-txt-token", "dns-cname-token", "http-token", "http-token-dynamic")
	choose("renewal", s.Renewal, RenewalAuto, RenewalOrder, RenewalNew)
}

// publicLimits are the days that a certificate of a public CA may be valid (CA/Browser Forum, Baseline Requirements,
// section 6.3.2), less one: CAs keep a day's distance.
var publicLimits = []struct {
	until time.Time
	days  int
}{
	{time.Date(2027, 3, 15, 0, 0, 0, 0, time.UTC), 199},
	{time.Date(2029, 3, 15, 0, 0, 0, 0, time.UTC), 99},
}

// maxValidity is how long a certificate of today may be valid; zero: nothing is known that bounds it.
func (s Settings) maxValidity(now time.Time) time.Duration {
	const day = 24 * time.Hour
	switch {
	case s.MaxValidityDays > 0:
		return time.Duration(s.MaxValidityDays) * day
	case strings.HasPrefix(s.ProductNameID, privatePrefix):
		return 0
	}
	for _, limit := range publicLimits {
		if now.Before(limit.until) {
			return time.Duration(limit.days) * day
		}
	}
	return 46 * day
}

// orderValidity is how long a new order is paid for.
func (s Settings) orderValidity(from time.Time) time.Time {
	return from.AddDate(s.OrderValidityYears, 0, s.OrderValidityDays)
}

// limits keep both bounds of the CA, for every window that begins anywhere: 75 at once and 5 a second are at most
// 75 + 5·5 = 100 calls in 5 seconds (bound 100) and 75 + 180·5 = 975 in 3 minutes (bound 1000).
func limits() account.Limits { return account.Limits{PerSecond: 5, Burst: 75, Concurrency: 8} }

// New makes an issuer. Errors are those of ParseSettings or of package issuer.
func New(c issuer.Config, d issuer.Deps) (*Issuer, error) {
	key := c.Secrets[fieldAPIKey]
	var set []string
	if !key.IsZero() {
		set = append(set, fieldAPIKey)
	}
	s, err := ParseSettings(c.Settings, set)
	if err != nil {
		return nil, err
	}
	if err := caclient.CheckHeaderSecret(fieldAPIKey, key); err != nil {
		return nil, err
	}
	client, err := caclient.New(caclient.Config{
		BaseURL: s.BaseURL, Settings: s.Settings, Identity: []string{key.Reveal()}, Limits: limits(),
		CredentialField: fieldAPIKey, Secrets: []secretbox.Secret{key}, Map: refusal,
		Authorize: func(_ context.Context, h http.Header) error {
			h.Set("X-DC-DEVKEY", key.Reveal())
			return nil
		},
	}, d)
	if err != nil {
		return nil, err
	}
	return &Issuer{settings: s, client: client, now: d.Clock()}, nil
}

// refusal tells a key that the CA does not know (401) from one that may not do this (403).
func refusal(e *caclient.StatusError) error {
	if e.Status == http.StatusForbidden {
		return caclient.Misconfigured("CA_ACCESS_DENIED", "", "the API key may not do this at the CA", e)
	}
	return nil
}

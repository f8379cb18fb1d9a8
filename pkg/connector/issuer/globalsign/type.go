package globalsign

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
)

// The secrets among the settings.
const (
	fieldKey    = "api_key"
	fieldSecret = "api_secret"
)

const (
	defaultBaseURL       = "https://emea.api.hvca.globalsign.com:8443"
	defaultLookupSettle  = 900
	maxLookupSettle      = 24 * 3600
	maxSubjectAttribute  = 128
	maxOrganizationUnits = 8
)

// Settings are a GlobalSign issuer's settings in the API. The client certificate is needed.
type Settings struct {
	caclient.Settings
	// BaseURL is the address of the region's API, with or without the /v2 at its end
	// (https://emea.api.hvca.globalsign.com:8443).
	BaseURL string `json:"base_url,omitempty"`
	// Subject is what the subjects of certificates have besides the common name, where the account's validation policy does
	// not have GlobalSign put it in.
	Subject
	// LookupSettleSeconds is how long after an order the CA may need to list its certificate: until then, an order whose
	// reply was lost counts as neither there nor missing (900).
	LookupSettleSeconds int `json:"lookup_settle_seconds,omitempty"`
}

// Subject is the part of a subject that is the same in all certificates.
type Subject struct {
	Organization        string   `json:"organization,omitempty"`
	OrganizationalUnits []string `json:"organizational_units,omitempty"`
	Country             string   `json:"country,omitempty"`
	State               string   `json:"state,omitempty"`
	Locality            string   `json:"locality,omitempty"`
	StreetAddress       string   `json:"street_address,omitempty"`
}

// Type describes GlobalSign issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		SecretFields: []string{fieldKey, fieldSecret},
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
	if s.ClientCertFile == "" && s.ClientKeyFile == "" {
		v.Add("client_cert_file", "is needed: GlobalSign knows its customers by a client certificate")
	}
	for _, field := range []string{fieldKey, fieldSecret} {
		if !slices.Contains(secretsSet, field) {
			v.Add(field, "is needed")
		}
	}
	s.checkSubject(&v)
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
	if s.LookupSettleSeconds == 0 {
		s.LookupSettleSeconds = defaultLookupSettle
	}
}

func (s Subject) checkSubject(v *errs.Violations) {
	for _, each := range []struct{ field, value string }{
		{"organization", s.Organization}, {"state", s.State}, {"locality", s.Locality}, {"street_address", s.StreetAddress},
	} {
		checkAttribute(v, each.field, each.value)
	}
	if n := len(s.OrganizationalUnits); n > maxOrganizationUnits {
		v.Add("organizational_units", "has %d entries: the most is %d", n, maxOrganizationUnits)
	}
	for i, unit := range s.OrganizationalUnits {
		checkAttribute(v, fmt.Sprintf("organizational_units[%d]", i), unit)
	}
	capital := func(b byte) bool { return 'A' <= b && b <= 'Z' }
	if c := s.Country; c != "" && (len(c) != 2 || !capital(c[0]) || !capital(c[1])) {
		v.Add("country", "%q is not a country code of two capital letters", c)
	}
}

func checkAttribute(v *errs.Violations, field, value string) {
	if n := len(value); n > maxSubjectAttribute {
		v.Add(field, "has %d characters: the most is %d", n, maxSubjectAttribute)
	}
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
	i, err := New(s, c.Secrets[fieldKey], c.Secrets[fieldSecret], d)
	if err != nil {
		return nil, err
	}
	return i, nil
}

package entrustgateway

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
)

const (
	defaultLookupSettle = 900
	maxLookupSettle     = 24 * 3600
	maxText             = 256
	maxVariables        = 16
)

// The values of Settings.ValidityForm.
const (
	validityInterval = "interval"
	validityDuration = "duration"
)

// Settings are a CA Gateway issuer's settings in the API. The client certificate is needed.
type Settings struct {
	caclient.Settings
	// BaseURL is the address of the gateway up to its context path, with or without the /v1 of the API at its end, such as
	// https://cagw.example.com/cagw.
	BaseURL string `json:"base_url"`
	// CAID is the CA behind the gateway, such as "partition~ca"; ProfileID is the certificate profile.
	CAID      string `json:"ca_id"`
	ProfileID string `json:"profile_id"`
	// ClientID is sent in the header ca-client-id, where a gateway wants it.
	ClientID string `json:"ca_client_id,omitempty"`
	// SubjectVariables are parts of the subject that are the same in all certificates, by the profile's names for them.
	SubjectVariables map[string]string `json:"subject_variables,omitempty"`
	// Properties go with each enrolment, such as tracking.requesterName, for CAs that want them.
	Properties map[string]string `json:"properties,omitempty"`
	// ReferenceProperty is the property that gets the order's id, such as tracking.trackingInfo. Empty: none does.
	ReferenceProperty string `json:"reference_property,omitempty"`
	// ValidityForm is how the validity is asked for: "interval" (start/end, the default) or "duration" (from the time of
	// issuance on), for CAs that do not take intervals.
	ValidityForm string `json:"validity_form,omitempty"`
	// LookupSettleSeconds is how long after an order the gateway may need to show its certificate: until then, an order
	// whose reply was lost counts as neither there nor missing (900).
	LookupSettleSeconds int `json:"lookup_settle_seconds,omitempty"`
	// EnrollmentsAreImmediate says whether the profile's enrolments are answered with the certificate. One that waits instead
	// is in no feed: unless this is true, a lost reply needs a human. Unset: true as long as none was seen to wait.
	EnrollmentsAreImmediate *bool `json:"enrollments_are_immediate,omitempty"`
}

// Type describes CA Gateway issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		Validate: func(raw json.RawMessage, _ []string) error {
			_, err := ParseSettings(raw)
			return err
		},
		New: newFromSettings,
	}
}

// ParseSettings reads and judges settings. The error is an errs.Invalid.
func ParseSettings(raw json.RawMessage) (Settings, error) {
	var s Settings
	if err := issuer.Decode(raw, &s); err != nil {
		return Settings{}, err
	}
	s.setDefaults()
	var v errs.Violations
	caclient.CheckURL(&v, "base_url", s.BaseURL)
	s.Check(&v)
	if s.ClientCertFile == "" && s.ClientKeyFile == "" {
		v.Add("client_cert_file", "is needed: the gateway knows its clients by their certificates")
	}
	checkID(&v, "ca_id", s.CAID, true)
	checkID(&v, "profile_id", s.ProfileID, true)
	checkID(&v, "ca_client_id", s.ClientID, false)
	checkTexts(&v, "subject_variables", s.SubjectVariables)
	checkTexts(&v, "properties", s.Properties)
	checkID(&v, "reference_property", s.ReferenceProperty, false)
	if s.ValidityForm != validityInterval && s.ValidityForm != validityDuration {
		v.Add("validity_form", "%q is neither interval nor duration", s.ValidityForm)
	}
	if n := s.LookupSettleSeconds; n < 0 || n > maxLookupSettle {
		v.Add("lookup_settle_seconds", "%d is not from 1 to %d, or 0 for %d", n, maxLookupSettle, defaultLookupSettle)
	}
	return s, v.Err()
}

// setDefaults fills in what is not given. The version in the address is ours to say, so one at its end is taken off.
func (s *Settings) setDefaults() {
	s.BaseURL = strings.TrimRight(strings.TrimSuffix(strings.TrimRight(s.BaseURL, "/"), "/v1"), "/")
	if s.ValidityForm == "" {
		s.ValidityForm = validityInterval
	}
	if s.LookupSettleSeconds == 0 {
		s.LookupSettleSeconds = defaultLookupSettle
	}
}

// idForm is what can stand in a header and, escaped, in a path.
var idForm = regexp.MustCompile(`^[\x21-\x7e]{1,256}$`)

func checkID(v *errs.Violations, field, value string, needed bool) {
	switch {
	case value == "" && needed:
		v.Add(field, "is needed")
	case value != "" && !idForm.MatchString(value):
		v.Add(field, "has more than 256 characters, or one that is not visible ASCII")
	}
}

func checkTexts(v *errs.Violations, field string, texts map[string]string) {
	if n := len(texts); n > maxVariables {
		v.Add(field, "has %d entries: the most is %d", n, maxVariables)
	}
	for name, text := range texts {
		if name == "" || len(name) > maxText || text == "" || len(text) > maxText {
			v.Add(field, "%q and its value have from 1 to %d characters each", name, maxText)
		}
	}
}

func newFromSettings(_ context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
	s, err := ParseSettings(c.Settings)
	if err != nil {
		return nil, err
	}
	i, err := New(s, d)
	if err != nil {
		return nil, err
	}
	return i, nil
}

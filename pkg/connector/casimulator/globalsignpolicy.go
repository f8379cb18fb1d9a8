package casimulator

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Presence says whether a field may stand in a request to HVCA: REQUIRED, OPTIONAL, FORBIDDEN, or STATIC when the CA
// puts the value in itself.
type Presence string

// The values of Presence.
const (
	PresenceRequired  Presence = "REQUIRED"
	PresenceOptional  Presence = "OPTIONAL"
	PresenceForbidden Presence = "FORBIDDEN"
	PresenceStatic    Presence = "STATIC"
)

// GlobalSignPolicy is the validation policy of an HVCA account, in the form in which GET /validationpolicy gives it
// (GlobalSign Atlas Certificate Management API, version 2.10).
type GlobalSignPolicy struct {
	Validity            GlobalSignValidityPolicy         `json:"validity"`
	SubjectDN           GlobalSignSubjectPolicy          `json:"subject_dn"`
	SAN                 GlobalSignSANPolicy              `json:"san"`
	ExtendedKeyUsages   GlobalSignEKUPolicy              `json:"extended_key_usages"`
	Signature           GlobalSignSignaturePolicy        `json:"signature"`
	PublicKey           GlobalSignPublicKeyPolicy        `json:"public_key"`
	PublicKeySignature  Presence                         `json:"public_key_signature"`
	SubjectDA           map[string]any                   `json:"subject_da,omitempty"`
	QualifiedStatements map[string]any                   `json:"qualified_statements,omitempty"`
	MSExtensionTemplate map[string]any                   `json:"ms_extension_template,omitempty"`
	CustomExtensions    map[string]GlobalSignExtraPolicy `json:"custom_extensions,omitempty"`
}

// GlobalSignValidityPolicy bounds the validity of a certificate, in seconds.
type GlobalSignValidityPolicy struct {
	SecondsMin            int64 `json:"secondsmin"`
	SecondsMax            int64 `json:"secondsmax"`
	NotBeforeNegativeSkew int64 `json:"not_before_negative_skew"`
	NotBeforePositiveSkew int64 `json:"not_before_positive_skew"`
	IssuerExpiry          int64 `json:"issuer_expiry"`
}

// GlobalSignSubjectPolicy has a rule per attribute of the subject; an attribute without a rule is forbidden.
type GlobalSignSubjectPolicy struct {
	CommonName         *GlobalSignStringPolicy `json:"common_name,omitempty"`
	Organization       *GlobalSignStringPolicy `json:"organization,omitempty"`
	OrganizationalUnit *GlobalSignListPolicy   `json:"organizational_unit,omitempty"`
	Country            *GlobalSignStringPolicy `json:"country,omitempty"`
	State              *GlobalSignStringPolicy `json:"state,omitempty"`
	Locality           *GlobalSignStringPolicy `json:"locality,omitempty"`
	StreetAddress      *GlobalSignStringPolicy `json:"street_address,omitempty"`
	Email              *GlobalSignStringPolicy `json:"email,omitempty"`
	SerialNumber       *GlobalSignStringPolicy `json:"serial_number,omitempty"`
}

// GlobalSignSANPolicy has a rule per kind of subject alternative name.
type GlobalSignSANPolicy struct {
	DNSNames    *GlobalSignListPolicy            `json:"dns_names,omitempty"`
	Emails      *GlobalSignListPolicy            `json:"emails,omitempty"`
	IPAddresses *GlobalSignListPolicy            `json:"ip_addresses,omitempty"`
	URIs        *GlobalSignListPolicy            `json:"uris,omitempty"`
	OtherNames  map[string]GlobalSignExtraPolicy `json:"other_names,omitempty"`
}

// GlobalSignEKUPolicy rules the extended key usages, which are written as OIDs.
type GlobalSignEKUPolicy struct {
	EKUs     GlobalSignListPolicy `json:"ekus"`
	Critical bool                 `json:"critical"`
}

// GlobalSignSignaturePolicy rules the algorithms that the CA signs with.
type GlobalSignSignaturePolicy struct {
	Algorithm     GlobalSignChoicePolicy `json:"algorithm"`
	HashAlgorithm GlobalSignChoicePolicy `json:"hash_algorithm"`
}

// GlobalSignPublicKeyPolicy rules the subject's key. KeyFormat is PKCS8 for a bare public key, PKCS10 for a CSR.
type GlobalSignPublicKeyPolicy struct {
	KeyType        string `json:"key_type"`
	AllowedLengths []int  `json:"allowed_lengths"`
	KeyFormat      string `json:"key_format"`
}

// GlobalSignStringPolicy rules one string by a regular expression; with STATIC it is the value itself.
type GlobalSignStringPolicy struct {
	Presence Presence `json:"presence"`
	Format   string   `json:"format"`
}

// GlobalSignListPolicy rules a list: each value has to match one of the regular expressions.
type GlobalSignListPolicy struct {
	Static   bool     `json:"static"`
	List     []string `json:"list"`
	MinCount int      `json:"mincount"`
	MaxCount int      `json:"maxcount"`
}

// GlobalSignChoicePolicy rules a value by enumeration.
type GlobalSignChoicePolicy struct {
	Presence Presence `json:"presence"`
	List     []string `json:"list"`
}

// GlobalSignExtraPolicy rules an extension or other name by its OID.
type GlobalSignExtraPolicy struct {
	Presence    Presence `json:"presence,omitempty"`
	Static      bool     `json:"static"`
	Critical    bool     `json:"critical"`
	ValueType   string   `json:"value_type"`
	ValueFormat string   `json:"value_format"`
	MinCount    int      `json:"mincount"`
	MaxCount    int      `json:"maxcount"`
}

// DefaultGlobalSignPolicy is that of an account for TLS certificates that sends CSRs with ECDSA keys.
func DefaultGlobalSignPolicy() GlobalSignPolicy {
	return GlobalSignPolicy{
		Validity: GlobalSignValidityPolicy{
			SecondsMin: 60, SecondsMax: 397 * 24 * 3600, NotBeforeNegativeSkew: 7200, NotBeforePositiveSkew: 7200,
		},
		SubjectDN: GlobalSignSubjectPolicy{
			CommonName:   &GlobalSignStringPolicy{Presence: PresenceOptional, Format: `^[^\x00-\x1f]{1,64}$`},
			Organization: &GlobalSignStringPolicy{Presence: PresenceStatic, Format: "certctl simulator"},
		},
		SAN: GlobalSignSANPolicy{
			DNSNames:    &GlobalSignListPolicy{List: []string{`^(\*\.)?([a-z0-9_-]{1,63}\.)*[a-z0-9-]{1,63}$`}, MaxCount: 100},
			IPAddresses: &GlobalSignListPolicy{List: []string{`^[0-9a-fA-F.:]+$`}, MaxCount: 100},
			Emails:      &GlobalSignListPolicy{List: []string{`^[^@]+@[^@]+$`}, MaxCount: 10},
			URIs:        &GlobalSignListPolicy{List: []string{`^[a-z][a-z0-9+.-]*:.+$`}, MaxCount: 10},
		},
		ExtendedKeyUsages: GlobalSignEKUPolicy{
			EKUs: GlobalSignListPolicy{List: []string{`^1\.3\.6\.1\.5\.5\.7\.3\.[12]$`}, MinCount: 1, MaxCount: 2},
		},
		Signature: GlobalSignSignaturePolicy{
			Algorithm:     GlobalSignChoicePolicy{Presence: PresenceOptional, List: []string{"ECDSA"}},
			HashAlgorithm: GlobalSignChoicePolicy{Presence: PresenceOptional, List: []string{"SHA-256"}},
		},
		PublicKey:          GlobalSignPublicKeyPolicy{KeyType: "ECDSA", AllowedLengths: []int{256, 384}, KeyFormat: "PKCS10"},
		PublicKeySignature: PresenceForbidden,
	}
}

// complaints are what is wrong with a request, by field.
type complaints map[string]string

func (c complaints) add(field, format string, args ...any) { c[field] = fmt.Sprintf(format, args...) }

// checkString holds a value against its rule; a nil rule forbids it.
func (c complaints) checkString(field, value string, p *GlobalSignStringPolicy) {
	switch {
	case p == nil || p.Presence == PresenceForbidden || p.Presence == PresenceStatic:
		if value != "" {
			c.add(field, "forbidden by the validation policy")
		}
	case value == "":
		if p.Presence == PresenceRequired {
			c.add(field, "required by the validation policy")
		}
	case !matches(p.Format, value):
		c.add(field, "%q does not match %q", value, p.Format)
	}
}

// checkList holds the values of a list against their rule; a nil rule forbids them.
func (c complaints) checkList(field string, values []string, p *GlobalSignListPolicy) {
	if p == nil || p.Static {
		p = &GlobalSignListPolicy{}
	}
	if len(values) < p.MinCount || len(values) > p.MaxCount {
		c.add(field, "%d values, the validation policy takes %d to %d", len(values), p.MinCount, p.MaxCount)
		return
	}
	for i, v := range values {
		if !slices.ContainsFunc(p.List, func(format string) bool { return matches(format, v) }) {
			c.add(field, "%q matches none of the formats of the validation policy", v)
		}
		if slices.Contains(values[:i], v) {
			c.add(field, "%q stands twice", v)
		}
	}
}

// checkChoice holds a value against an enumeration.
func (c complaints) checkChoice(field, value string, p GlobalSignChoicePolicy) {
	switch {
	case value == "":
		if p.Presence == PresenceRequired {
			c.add(field, "required by the validation policy")
		}
	case p.Presence == PresenceForbidden || p.Presence == PresenceStatic || !slices.Contains(p.List, value):
		c.add(field, "%q is not allowed by the validation policy", value)
	}
}

func matches(format, value string) bool {
	re, err := regexp.Compile(format)
	return err == nil && re.MatchString(value)
}

// window gives the validity of a certificate that was asked for at now. A not_after of 0 is the longest allowed.
func (p GlobalSignValidityPolicy) window(v *globalSignValidity, now time.Time, c complaints) (notBefore, notAfter time.Time) {
	if v == nil {
		c.add("validity", "required")
		return
	}
	notBefore = time.Unix(v.NotBefore, 0).UTC()
	if skew := v.NotBefore - now.Unix(); skew < -p.NotBeforeNegativeSkew || skew > p.NotBeforePositiveSkew {
		c.add("validity.not_before", "%d s from the present time, allowed is -%d to %d", skew, p.NotBeforeNegativeSkew, p.NotBeforePositiveSkew)
	}
	seconds := v.NotAfter - v.NotBefore
	if v.NotAfter == 0 {
		seconds = p.SecondsMax
	}
	if seconds < p.SecondsMin || seconds > p.SecondsMax {
		c.add("validity.not_after", "a validity of %d s, allowed is %d to %d", seconds, p.SecondsMin, p.SecondsMax)
	}
	return notBefore, notBefore.Add(time.Duration(seconds) * time.Second)
}

// checkKey holds the type and length of a key against the policy.
func (p GlobalSignPublicKeyPolicy) checkKey(public any, c complaints) {
	var keyType string
	var bits int
	switch k := public.(type) {
	case *rsa.PublicKey:
		keyType, bits = "RSA", k.N.BitLen()
	case *ecdsa.PublicKey:
		keyType, bits = "ECDSA", k.Curve.Params().BitSize
	}
	if keyType != p.KeyType || !slices.Contains(p.AllowedLengths, bits) {
		c.add("public_key", "a key of type %s with %d bits, allowed is %s with %v", cmp.Or(keyType, "unknown"), bits, p.KeyType, p.AllowedLengths)
	}
}

// Package secretbox keeps secrets from being seen: Secret is a string that cannot be printed, and Box
// encrypts what must be stored.
package secretbox

import (
	"crypto/subtle"
	"fmt"
)

// mask stands for the content of a Secret wherever it would be printed.
const mask = "***"

// Secret is a string that no formatter, logger or encoder can print. Reveal is the one way to its content. Secrets are
// compared with Equal, not with ==.
//
// The content is behind a pointer because package fmt calls no methods on the unexported fields of a struct: it would
// print the text of a Secret in one, and so prints an address.
type Secret struct{ value *string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{value: &s} }

// Reveal returns the content, for the one place that needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero tells whether the secret is empty.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// Equal compares in constant time for secrets of equal length.
func (s Secret) Equal(o Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(o.Reveal())) == 1
}

// String masks the content; an empty secret stays empty, so that "not set" can be seen.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return mask
}

// Format masks the content for every verb of package fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText masks the content for JSON, YAML and zap.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes the content as it stands, for settings.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}

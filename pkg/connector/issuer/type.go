package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// MaxSettings is the most bytes of one issuer's settings.
const MaxSettings = 256 << 10

// Type describes one kind of issuer. Which there are is a list that the program assembles (package catalog), so that
// nothing registers itself.
type Type struct {
	// Name is the type in the API, lower-case.
	Name string
	// Capabilities is what issuers of the type can do at most.
	Capabilities Capabilities
	// SecretFields are the top-level fields of the settings whose values are secrets: stored encrypted, never shown.
	// They are declared here, not guessed from their names, and never part of settings that reach Validate or New.
	SecretFields []string
	// Validate judges settings without touching the network or the disk. It gets the names of the secrets that are set.
	// The error is an errs.Invalid whose fields are paths in the settings, such as "crl_urls[0]".
	Validate func(settings json.RawMessage, secretsSet []string) error
	// New makes an issuer. It may read files and call the CA. Errors are those of Validate or of this package.
	New func(ctx context.Context, c Config, d Deps) (Issuer, error)
}

// Config is what one issuer was configured with.
type Config struct {
	Settings json.RawMessage
	Secrets  map[string]secretbox.Secret // by name of field
}

// Deps is what a connector may use of its surroundings.
type Deps struct {
	Now func() time.Time // nil: time.Now
	// Accounts are the guards of this process, one per CA account; nil: the issuer gets one of its own.
	Accounts *account.Accounts
}

// Clock gives the function that tells the time.
func (d Deps) Clock() func() time.Time {
	if d.Now == nil {
		return time.Now
	}
	return d.Now
}

// Types is a list of types.
type Types []Type

// Lookup finds a type by its name.
func (ts Types) Lookup(name string) (Type, bool) {
	i := slices.IndexFunc(ts, func(t Type) bool { return t.Name == name })
	if i < 0 {
		return Type{}, false
	}
	return ts[i], true
}

// Names gives the names of the types, sorted, for messages.
func (ts Types) Names() []string {
	out := make([]string, 0, len(ts))
	for _, t := range ts {
		out = append(out, t.Name)
	}
	slices.Sort(out)
	return out
}

// SplitSecrets takes the secrets out of settings as a user wrote them. A secret must be a string; null counts as not
// given. The error is an errs.Invalid.
func (t Type) SplitSecrets(settings json.RawMessage) (public json.RawMessage, secrets map[string]secretbox.Secret, err error) {
	fields := map[string]json.RawMessage{}
	if err := Decode(settings, &fields); err != nil {
		return nil, nil, err
	}
	var v errs.Violations
	secrets = make(map[string]secretbox.Secret, len(t.SecretFields))
	for _, name := range t.SecretFields {
		raw, given := fields[name]
		delete(fields, name)
		if !given {
			continue
		}
		var text *string
		if json.Unmarshal(raw, &text) != nil {
			v.Add(name, "is a secret and has to be a string")
		} else if text != nil {
			secrets[name] = secretbox.NewSecret(*text)
		}
	}
	if err := v.Err(); err != nil {
		return nil, nil, err
	}
	public, err = json.Marshal(fields)
	return public, secrets, err
}

// Decode reads settings strictly: one JSON object, no unknown field, nothing behind it. Empty settings are {}. The
// error is an errs.Invalid.
func Decode(settings json.RawMessage, into any) error {
	if len(settings) > MaxSettings {
		return errs.Field("", "the settings have %d bytes: the most is %d", len(settings), MaxSettings)
	}
	if len(bytes.TrimSpace(settings)) == 0 {
		return nil
	}
	if !bytes.HasPrefix(bytes.TrimSpace(settings), []byte("{")) {
		return errs.Field("", "the settings are not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(settings))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return decodeError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errs.Field("", "something follows the settings")
	}
	return nil
}

func decodeError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return errs.Field(wrong.Field, "is a %s where a %s is expected", wrong.Value, wrong.Type).Wrap(err)
	}
	// The decoder has no type for unknown fields; its text names the field and is shown as it is.
	return errs.Field("", "%s", err.Error())
}

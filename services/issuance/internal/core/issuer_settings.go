package core

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Settings are an issuer's settings as a user wrote them, with secrets in clear or as {"set": true}.
type Settings map[string]any

// Secret text of settings never gets into logs with %v.
func (Settings) String() string { return "***" }

// split is what settings are made of.
type split struct {
	public  json.RawMessage
	secrets map[string]secretbox.Secret // given now
	kept    []string                    // set before, and to stay
}

func (s split) names() []string {
	return slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(s.secrets)), s.kept)))
}

// splitSettings takes secrets out of settings and judges what is left. stored are the names of the secrets that are set.
func splitSettings(t issuer.Type, in Settings, stored []string) (split, error) {
	var v errs.Violations
	given := maps.Clone(in)
	var out split
	for _, name := range t.SecretFields {
		switch {
		case !isSet(given[name]):
		case slices.Contains(stored, name):
			out.kept = append(out.kept, name)
			delete(given, name)
		default:
			v.Add("config."+name, `{"set": true} keeps a secret, and none is stored yet: give it`)
			delete(given, name)
		}
	}
	if t.Name == local.TypeName {
		// The CA's own keys are never a user's to give or to drop.
		if _, ok := given[local.MaterialField]; ok {
			v.Add("config."+local.MaterialField, "is made by certctl")
			delete(given, local.MaterialField)
		}
		if slices.Contains(stored, local.MaterialField) && !slices.Contains(out.kept, local.MaterialField) {
			out.kept = append(out.kept, local.MaterialField)
		}
	}
	raw, err := json.Marshal(map[string]any(given))
	if err != nil {
		return split{}, fmt.Errorf("encode settings: %w", err)
	}
	if given == nil {
		raw = []byte(`{}`)
	}
	out.public, out.secrets, err = t.SplitSecrets(raw)
	if err != nil {
		merge(&v, err, configField)
		return split{}, v.Err()
	}
	if len(out.public) == 0 || string(out.public) == "null" {
		out.public = []byte(`{}`)
	}
	if err := t.Validate(out.public, out.names()); err != nil {
		merge(&v, err, configField)
	}
	return out, v.Err()
}

// isSet recognises {"set": true}.
func isSet(value any) bool {
	m, ok := value.(map[string]any)
	return ok && len(m) == 1 && m["set"] == true
}

func configField(field string) string {
	if field == "" {
		return "config"
	}
	return "config." + field
}

// needsGenerating tells whether settings are those of a self-made local CA that has no keys yet.
func needsGenerating(t issuer.Type, s split) bool {
	if t.Name != local.TypeName || slices.Contains(s.names(), local.MaterialField) {
		return false
	}
	settings, err := local.ParseSettings(s.public, s.names())
	return err == nil && settings.SelfMade()
}

// generate makes the keys of a self-made local CA.
func (c *Core) generate(t issuer.Type, s *split) error {
	if !needsGenerating(t, *s) {
		return nil
	}
	settings, err := local.ParseSettings(s.public, s.names())
	if err != nil {
		return err
	}
	m, err := local.Generate(settings.Subject(), c.now())
	if err != nil {
		return fmt.Errorf("generate local CA: %w", err)
	}
	secret, err := m.Encode()
	if err != nil {
		return err
	}
	s.secrets[local.MaterialField] = secret
	return nil
}

// tryBuild builds a local CA once before it is stored; nil when there is nothing to try. Other connectors may call their CA
// when they are built: those are for TestIssuer.
func (c *Core) tryBuild(ctx context.Context, t issuer.Type, s split) (issuer.Issuer, error) {
	if t.Name != local.TypeName || len(s.kept) > 0 {
		return nil, nil //nolint:nilnil // nothing to try is no error
	}
	connector, err := t.New(ctx, issuer.Config{Settings: s.public, Secrets: s.secrets}, issuer.Deps{Now: c.deps.Now})
	return connector, settingsError(err)
}

// settingsError shows what a connector says about its settings as an errs.Invalid on the setting.
func settingsError(err error) error {
	if p, ok := asPermanent(err); ok {
		return errs.Field(configField(p.Field), "%s", p.Message).With("reason", p.Reason).Wrap(err)
	}
	return err
}

// checkSameCA makes sure that a connector whose CRL is signed here is still the CA that issued what the issuer has issued:
// another one could neither revoke that nor list it in a CRL that anybody would believe.
func checkSameCA(ctx context.Context, q store.Querier, issuerID string, connector issuer.Issuer) error {
	_, signs := connector.(issuer.CRLSigner)
	ca, ok := connector.(issuer.ChainProvider)
	if !signs || !ok {
		return nil
	}
	stored, err := store.AnyCertificate(ctx, q, issuerID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	leaf, err := parseLeaf(stored)
	if err != nil {
		return err
	}
	chain, err := ca.Chain(ctx)
	if err != nil {
		return fmt.Errorf("read chain of CA: %w", err)
	}
	if len(chain) == 0 || !bytes.Equal(leaf.RawIssuer, chain[0].RawSubject) || leaf.CheckSignatureFrom(chain[0]) != nil {
		return &issuer.PermanentError{Fault: issuer.FaultConfiguration, Reason: "CA_CHANGED", Field: "certificate_file",
			Message: "this is another CA than the one that issued the certificates of this issuer: create a new issuer for it"}
	}
	return nil
}

func (c *Core) seal(issuerID string, secrets map[string]secretbox.Secret) map[string][]byte {
	out := make(map[string][]byte, len(secrets))
	for name, s := range secrets {
		out[name] = c.deps.Box.Seal([]byte(s.Reveal()), secretPlace(issuerID, name))
	}
	return out
}

// configHash covers type, settings and sealed secrets. Sealing draws a nonce, so the hash changes with each new secret
// and shows nothing of it.
func configHash(typeName string, public []byte, sealed map[string][]byte) string {
	parts := []string{typeName, string(public)}
	for _, name := range slices.Sorted(maps.Keys(sealed)) {
		parts = append(parts, name, string(sealed[name]))
	}
	return hex.EncodeToString(digest(parts...))
}

func putSecrets(ctx context.Context, tx pgx.Tx, issuerID string, sealed map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(sealed)) {
		if err := store.PutSecret(ctx, tx, issuerID, name, sealed[name]); err != nil {
			return err
		}
	}
	return nil
}

// wantedSettings gives the settings after an edit, secrets that stay as {"set": true}.
func wantedSettings(i store.Issuer, e IssuerEdit) (Settings, error) {
	if e.Settings != nil {
		return *e.Settings, nil
	}
	out, err := ShownSettings(i)
	if err != nil {
		return nil, err
	}
	for name, value := range e.Merge {
		if value == nil {
			delete(out, name)
			continue
		}
		out[name] = value
	}
	return out, nil
}

// ShownSettings are an issuer's settings as they are shown: secrets as {"set": true}.
func ShownSettings(i store.Issuer) (Settings, error) {
	out := Settings{}
	if err := json.Unmarshal(i.Config, &out); err != nil {
		return nil, fmt.Errorf("decode settings of issuer %s: %w", i.ID, err)
	}
	for _, name := range i.SecretNames {
		out[name] = map[string]any{"set": true}
	}
	return out, nil
}

package core

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Statuses of an issuer.
const (
	IssuerUntested = "UNTESTED"
	IssuerOK       = "OK"
	IssuerFailing  = "FAILING"
)

// Settings are an issuer's settings as a user wrote them, with secrets in clear or as {"set": true}.
type Settings map[string]any

// Secret text of settings never gets into logs with %v.
func (Settings) String() string { return "***" }

// NewIssuer is an issuer to be stored.
type NewIssuer struct {
	ID       string
	Name     string
	Type     string
	Settings Settings
	Enabled  bool
}

// CreateIssuer stores a new issuer. A local one without files gets its root and intermediate here: their keys are
// sealed and stored in this transaction, before anything can be signed with them.
func (c *Core) CreateIssuer(ctx context.Context, tx pgx.Tx, in NewIssuer) (store.Issuer, error) {
	var v errs.Violations
	checkName(&v, in.Name)
	t, ok := c.deps.Types.Lookup(in.Type)
	if !ok {
		v.Add("type", "%q is no type of issuer: there are %v", in.Type, c.deps.Types.Names())
	}
	if err := v.Err(); err != nil {
		return store.Issuer{}, err
	}
	id, err := chooseID(in.ID, "iss")
	if err != nil {
		return store.Issuer{}, err
	}
	s, err := splitSettings(t, in.Settings, nil)
	if err != nil {
		return store.Issuer{}, err
	}
	if err := c.generate(t, &s); err != nil {
		return store.Issuer{}, err
	}
	i := store.Issuer{ID: id, Name: in.Name, Type: in.Type, Enabled: in.Enabled, Config: s.public}
	sealed := c.seal(id, s.secrets)
	i.ConfigHash = configHash(t.Name, s.public, sealed)
	if err := c.tryBuild(ctx, t, s); err != nil {
		return store.Issuer{}, err
	}
	err = store.InsertIssuer(ctx, tx, i)
	if errors.Is(err, store.ErrExists) {
		return store.Issuer{}, errs.New(errs.AlreadyExists, "ISSUER_EXISTS", "the id %s is taken, perhaps by an issuer that was deleted and has issued certificates", id)
	}
	if err != nil {
		return store.Issuer{}, err
	}
	if err := putSecrets(ctx, tx, id, sealed); err != nil {
		return store.Issuer{}, err
	}
	return c.issuerChanged(ctx, tx, id, "issuer.created")
}

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

// generate makes the keys of a self-made local CA.
func (c *Core) generate(t issuer.Type, s *split) error {
	if t.Name != local.TypeName {
		return nil
	}
	settings, err := local.ParseSettings(s.public, s.names())
	if err != nil || !settings.SelfMade() {
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

// tryBuild builds a local CA once before it is stored, so that wrong files are found while somebody is looking. Other
// connectors may call their CA when they are built: those are for TestIssuer.
func (c *Core) tryBuild(ctx context.Context, t issuer.Type, s split) error {
	if t.Name != local.TypeName || len(s.kept) > 0 {
		return nil
	}
	_, err := t.New(ctx, issuer.Config{Settings: s.public, Secrets: s.secrets}, issuer.Deps{Now: c.deps.Now})
	if p, ok := asPermanent(err); ok {
		return errs.Field("config", "%s", p.Message).Wrap(err)
	}
	return err
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

func (c *Core) issuerChanged(ctx context.Context, tx pgx.Tx, id, action string) (store.Issuer, error) {
	i, err := store.GetIssuer(ctx, tx, id)
	if err != nil {
		return store.Issuer{}, err
	}
	return i, c.recordIssuer(ctx, tx, i, action)
}

func (c *Core) recordIssuer(ctx context.Context, tx pgx.Tx, i store.Issuer, action string) error {
	entry := auditlog.Entry{Action: action, ResourceType: "issuer", ResourceID: i.ID, Data: map[string]any{
		"name": i.Name, "type": i.Type, "enabled": i.Enabled, "revision": i.Revision, "config_hash": i.ConfigHash,
	}}
	if err := emit(ctx, tx, auditlog.Event(ctx, entry)); err != nil {
		return err
	}
	return revision.Bump(ctx, tx, collectionIssuers)
}

// IssuerEdit is what an update changes; nil fields stay.
type IssuerEdit struct {
	Name    *string
	Enabled *bool
	// Settings replaces all settings; Merge replaces only the settings that it has, null removes one.
	Settings *Settings
	Merge    Settings
}

// UpdateIssuer changes an issuer.
func (c *Core) UpdateIssuer(ctx context.Context, tx pgx.Tx, id string, expected int32, e IssuerEdit) (store.Issuer, error) {
	i, err := c.lockIssuer(ctx, tx, id, expected)
	if err != nil {
		return store.Issuer{}, err
	}
	var v errs.Violations
	if e.Name != nil {
		i.Name = *e.Name
		checkName(&v, i.Name)
	}
	if e.Enabled != nil {
		i.Enabled = *e.Enabled
	}
	if err := v.Err(); err != nil {
		return store.Issuer{}, err
	}
	if e.Settings != nil || len(e.Merge) > 0 {
		if err := c.changeSettings(ctx, tx, &i, e); err != nil {
			return store.Issuer{}, err
		}
	}
	if err := store.UpdateIssuer(ctx, tx, i); err != nil {
		return store.Issuer{}, err
	}
	return c.issuerChanged(ctx, tx, id, "issuer.updated")
}

func (c *Core) changeSettings(ctx context.Context, tx pgx.Tx, i *store.Issuer, e IssuerEdit) error {
	t, ok := c.deps.Types.Lookup(i.Type)
	if !ok {
		return errs.New(errs.Conflict, "ISSUER_TYPE_UNKNOWN", "issuer %s has type %q, which this program does not have", i.ID, i.Type)
	}
	wanted, err := wantedSettings(*i, e)
	if err != nil {
		return err
	}
	s, err := splitSettings(t, wanted, i.SecretNames)
	if err != nil {
		return err
	}
	if err := c.tryBuild(ctx, t, s); err != nil {
		return err
	}
	if err := store.KeepSecrets(ctx, tx, i.ID, s.kept); err != nil {
		return err
	}
	if err := putSecrets(ctx, tx, i.ID, c.seal(i.ID, s.secrets)); err != nil {
		return err
	}
	sealed, err := store.GetSecrets(ctx, tx, i.ID)
	if err != nil {
		return err
	}
	i.Config, i.ConfigHash = s.public, configHash(i.Type, s.public, sealed)
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

func (c *Core) lockIssuer(ctx context.Context, tx pgx.Tx, id string, expected int32) (store.Issuer, error) {
	i, err := store.LockIssuer(ctx, tx, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Issuer{}, issuerNotFound(id)
	}
	if err == nil && expected != 0 && expected != i.Revision {
		return store.Issuer{}, mutation.Mismatch("issuer "+id, expected, i.Revision)
	}
	return i, err
}

// CheckIssuerUnused asks inventory whether certificates use an issuer. It runs before the transaction of DeleteIssuer.
func (c *Core) CheckIssuerUnused(ctx context.Context, id string) error {
	if _, err := c.GetIssuer(ctx, id); err != nil {
		return err
	}
	n, err := c.deps.References.CountIssuer(ctx, id)
	if err != nil {
		return fmt.Errorf("count certificates of issuer: %w", err)
	}
	if n > 0 {
		return inUse("ISSUER_IN_USE", "issuer "+id, n, "certificates")
	}
	return nil
}

// DeleteIssuer removes an issuer that no open order uses. When it has ever issued, its row and keys stay out of sight, so
// that what it issued can be revoked and its CRL goes on.
func (c *Core) DeleteIssuer(ctx context.Context, tx pgx.Tx, id string, expected int32) error {
	i, err := c.lockIssuer(ctx, tx, id, expected)
	if err != nil {
		return err
	}
	n, err := store.CountOpenOrders(ctx, tx, id)
	if err != nil {
		return err
	}
	if n > 0 {
		return inUse("ISSUER_IN_USE", "issuer "+id, n, "orders")
	}
	if err := store.DeleteIssuer(ctx, tx, id); err != nil {
		return err
	}
	c.instances.drop(id)
	return c.recordIssuer(ctx, tx, i, "issuer.deleted")
}

// GetIssuer reads one that is not deleted.
func (c *Core) GetIssuer(ctx context.Context, id string) (store.Issuer, error) {
	i, err := store.GetIssuer(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) || err == nil && !i.DeleteTime.IsZero() {
		return store.Issuer{}, issuerNotFound(id)
	}
	return i, err
}

// IssuerSorting is what issuers may be ordered by.
func (c *Core) IssuerSorting() *page.Sorting { return c.issuers }

// ListIssuers reads one page more one row, and the number of all if asked.
func (c *Core) ListIssuers(ctx context.Context, f store.IssuerFilter, total bool) ([]store.Issuer, *int32, error) {
	rows, err := store.ListIssuers(ctx, c.deps.DB.Pool, f)
	if err != nil || !total {
		return rows, nil, err
	}
	n, err := store.CountIssuers(ctx, c.deps.DB.Pool, f)
	return rows, &n, err
}

// Capabilities is what an issuer can do: what its connector says if it is built already, else what its type says.
func (c *Core) Capabilities(i store.Issuer) issuer.Capabilities {
	c.instances.mu.RLock()
	in, ok := c.instances.byID[i.ID]
	c.instances.mu.RUnlock()
	if ok && in.hash == i.ConfigHash {
		return in.caps
	}
	t, _ := c.deps.Types.Lookup(i.Type)
	return t.Capabilities
}

// TestIssuer builds the connector, asks the CA something that costs nothing, and stores how that went. A CA that does not
// work is an answer, not an error.
func (c *Core) TestIssuer(ctx context.Context, id string) (store.Issuer, error) {
	i, err := c.GetIssuer(ctx, id)
	if err != nil {
		return store.Issuer{}, err
	}
	failure := c.probe(ctx, i)
	i.Status, i.LastTestTime, i.LastError = IssuerOK, c.now(), ""
	outcome := auditlog.Success
	if failure != nil {
		i.Status, i.LastError = IssuerFailing, shown(failure)
		outcome = auditlog.Failure
	}
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		stored, err := store.RecordIssuerTest(ctx, tx, i)
		if err != nil {
			return err
		}
		if !stored {
			return errs.New(errs.Conflict, "ISSUER_CHANGED", "issuer %s was changed during the test: test it again", id)
		}
		entry := auditlog.Entry{Action: "issuer.tested", ResourceType: "issuer", ResourceID: id, Outcome: outcome,
			Data: map[string]any{"status": i.Status, "error": i.LastError}}
		if err := emit(ctx, tx, auditlog.Event(ctx, entry)); err != nil {
			return err
		}
		return revision.Bump(ctx, tx, collectionIssuers)
	})
	return i, err
}

// probe asks the CA for its certificates or, failing that, for an order that cannot exist.
func (c *Core) probe(ctx context.Context, i store.Issuer) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	in, err := c.instances.get(ctx, i)
	if err != nil {
		return err
	}
	switch ca := in.Issuer.(type) {
	case issuer.ChainProvider:
		_, err = ca.Chain(ctx)
	case issuer.Finder:
		_, _, err = ca.FindOrder(ctx, issuer.FindRequest{OrderID: "ord-connection-test", Since: c.now()})
	}
	return err
}

// shown is what of a connector's error may be seen: the sentences that connectors make for people, no causes.
func shown(err error) string {
	if p, ok := asPermanent(err); ok {
		return p.Message
	}
	var r *issuer.RetryError
	if errors.As(err, &r) {
		return r.Message
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the CA did not answer in time"
	}
	return "the CA could not be asked"
}

// Credentials are what asyncpoller needs to call a CA.
type Credentials struct {
	Type       string
	ConfigHash string
	Config     []byte // JSON with secrets in clear; empty when the caller knows them
}

// IssuerCredentials gives the settings of an issuer whose orders are polled. The keys of a CA that answers at once have no
// business outside of this service.
func (c *Core) IssuerCredentials(ctx context.Context, id, knownHash string) (Credentials, error) {
	i, err := store.GetIssuer(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		return Credentials{}, issuerNotFound(id)
	}
	if err != nil {
		return Credentials{}, err
	}
	t, ok := c.deps.Types.Lookup(i.Type)
	if !ok || !t.Capabilities.Async {
		return Credentials{}, errs.New(errs.PermissionDenied, "ISSUER_NOT_POLLED", "orders of issuer %s are never polled", id)
	}
	out := Credentials{Type: i.Type, ConfigHash: i.ConfigHash}
	if knownHash == i.ConfigHash {
		return out, nil
	}
	secrets, err := c.openSecrets(ctx, c.deps.DB.Pool, id)
	if err != nil {
		return Credentials{}, err
	}
	settings := map[string]any{}
	if err := json.Unmarshal(i.Config, &settings); err != nil {
		return Credentials{}, fmt.Errorf("decode settings: %w", err)
	}
	for name, s := range secrets {
		settings[name] = s.Reveal()
	}
	out.Config, err = json.Marshal(settings)
	return out, err
}

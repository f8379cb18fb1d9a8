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
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
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

// IssuerDraft is a new issuer that has been judged: its keys are made or its files were read.
type IssuerDraft struct {
	row    store.Issuer
	sealed map[string][]byte
}

// DraftIssuer judges a new issuer and makes what it needs: a local one without files gets its root and intermediate here,
// one with files is built once, so that wrong files are found while somebody is looking. It stores nothing, and runs
// outside of any transaction, because a disk may be slow.
func (c *Core) DraftIssuer(ctx context.Context, in NewIssuer) (IssuerDraft, error) {
	var v errs.Violations
	checkName(&v, in.Name)
	t, ok := c.deps.Types.Lookup(in.Type)
	if !ok {
		v.Add("type", "%q is no type of issuer: there are %v", in.Type, c.deps.Types.Names())
	}
	if err := v.Err(); err != nil {
		return IssuerDraft{}, err
	}
	id, err := chooseID(in.ID, "iss")
	if err != nil {
		return IssuerDraft{}, err
	}
	s, err := splitSettings(t, in.Settings, nil)
	if err != nil {
		return IssuerDraft{}, err
	}
	if err := c.generate(t, &s); err != nil {
		return IssuerDraft{}, err
	}
	d := IssuerDraft{row: store.Issuer{ID: id, Name: in.Name, Type: in.Type, Enabled: in.Enabled, Config: s.public}, sealed: c.seal(id, s.secrets)}
	d.row.ConfigHash = configHash(t.Name, s.public, d.sealed)
	connector, err := c.tryBuild(ctx, t, s)
	if err != nil {
		return IssuerDraft{}, err
	}
	if connector != nil {
		d.row.MaxValidity = capabilitiesOf(t, connector).MaxValidity
	}
	return d, nil
}

// CreateIssuer stores a drafted issuer with its sealed keys, before anything can be signed with them.
func (c *Core) CreateIssuer(ctx context.Context, tx pgx.Tx, d IssuerDraft) (store.Issuer, error) {
	id := d.row.ID
	err := store.InsertIssuer(ctx, tx, d.row)
	if errors.Is(err, store.ErrExists) {
		return store.Issuer{}, errs.New(errs.AlreadyExists, "ISSUER_EXISTS", "the id %s is taken, perhaps by an issuer that was deleted and has issued certificates", id)
	}
	if err != nil {
		return store.Issuer{}, err
	}
	if err := putSecrets(ctx, tx, id, d.sealed); err != nil {
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
	if needsGenerating(t, s) {
		return errs.Field("config.certificate_file", "is needed: a CA from files does not become a self-made one; create a new issuer")
	}
	connector, err := c.tryBuild(ctx, t, s)
	if err != nil {
		return err
	}
	if connector != nil {
		if err := checkSameCA(ctx, tx, i.ID, connector); err != nil {
			return settingsError(err)
		}
		i.MaxValidity = capabilitiesOf(t, connector).MaxValidity
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

// Capabilities is what an issuer can do: what its connector says if it is built already, else what its type says. The
// longest validity is the stored one, so that all replicas say the same.
func (c *Core) Capabilities(i store.Issuer) issuer.Capabilities {
	t, _ := c.deps.Types.Lookup(i.Type)
	caps := t.Capabilities
	if in, ok := c.instances.current(i); ok {
		caps = in.caps
	}
	caps.MaxValidity = i.MaxValidity
	return caps
}

// TestIssuer builds the connector anew, as a restart would, asks the CA something that costs nothing, and stores how that
// went. A CA that does not work is an answer, not an error. Files that were replaced since the last start are in use
// afterwards.
func (c *Core) TestIssuer(ctx context.Context, id string) (store.Issuer, error) {
	i, err := c.GetIssuer(ctx, id)
	if err != nil {
		return store.Issuer{}, err
	}
	validity, failure := c.probe(ctx, i)
	i.Status, i.LastTestTime, i.LastError, i.MaxValidity = IssuerOK, c.now(), "", validity
	outcome := auditlog.Success
	if failure != nil {
		c.log.Warn("the test of an issuer failed", logx.ID(logx.KeyIssuer, id), logx.Error(failure))
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

// probe builds the connector from what is stored and what is on disk, and asks the CA for its certificates and for an order
// that cannot exist. It gives the longest validity, which stays as it was when nothing could be built.
func (c *Core) probe(ctx context.Context, i store.Issuer) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	in, err := c.rebuild(ctx, i)
	if err != nil {
		return i.MaxValidity, err
	}
	if ca, ok := in.Issuer.(issuer.ChainProvider); ok {
		if _, err := ca.Chain(ctx); err != nil {
			return in.caps.MaxValidity, err
		}
	}
	if ca, ok := in.Issuer.(issuer.Finder); ok {
		_, _, err = ca.FindOrder(ctx, issuer.FindRequest{OrderID: "ord-connection-test", Since: c.now()})
	}
	return in.caps.MaxValidity, err
}

// rebuild builds the connector of an issuer anew and, if it works and is the same CA, puts it in the place of the old one.
func (c *Core) rebuild(ctx context.Context, i store.Issuer) (*instance, error) {
	in, err := c.build(ctx, i)
	if err != nil {
		return nil, err
	}
	if err := checkSameCA(ctx, c.deps.DB.Pool, i.ID, in.Issuer); err != nil {
		return nil, err
	}
	c.instances.put(i.ID, in)
	return in, nil
}

// shown is what of a connector's error may be seen: the sentences that connectors make for people, no causes.
func shown(err error) string {
	if p, ok := asPermanent(err); ok {
		return clip(p.Message)
	}
	if r, ok := errors.AsType[*issuer.RetryError](err); ok {
		return clip(r.Message)
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

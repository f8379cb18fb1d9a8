package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Statuses of an issuer.
const (
	IssuerUntested = "UNTESTED"
	IssuerOK       = "OK"
	IssuerFailing  = "FAILING"
)

// NewIssuer is an issuer to be stored.
type NewIssuer struct {
	ID       string
	Name     string
	Type     string
	Settings Settings
	Enabled  bool
	// PendingDeadline is how long an order may be pending; 0: as the connector says.
	PendingDeadline time.Duration
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
	d := IssuerDraft{sealed: c.seal(id, s.secrets), row: store.Issuer{
		ID: id, Name: in.Name, Type: in.Type, Enabled: in.Enabled, Config: s.public, PendingDeadline: in.PendingDeadline,
	}}
	d.row.ConfigHash = configHash(t.Name, s.public, d.sealed)
	connector, err := c.tryBuild(ctx, t, s)
	if err != nil {
		return IssuerDraft{}, err
	}
	if connector != nil {
		d.row.MaxValidity = capabilitiesOf(t, connector).MaxValidity
	}
	return d, c.tryRemote(ctx, t, s.public, s.secrets, &d.row)
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
	// PendingDeadline 0 is as the connector says.
	PendingDeadline *time.Duration
	// Settings replaces all settings; Merge replaces only the settings that it has, null removes one.
	Settings *Settings
	Merge    Settings
	// Tested is how TryEdit went; empty: the settings were not tried.
	Tested IssuerTest
}

// IssuerTest is how the CA answered to settings.
type IssuerTest struct {
	Status string // empty: it was not asked
	Time   time.Time
	Error  string
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
	if e.PendingDeadline != nil {
		i.PendingDeadline = *e.PendingDeadline
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
	i.Status, i.LastTestTime, i.LastError = orElse(e.Tested.Status, IssuerUntested), e.Tested.Time, e.Tested.Error
	return nil
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

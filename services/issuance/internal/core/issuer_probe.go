package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// tryTimeout bounds how long somebody waits who stores settings of a CA.
const tryTimeout = 15 * time.Second

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

// tryRemote asks the CA about new settings while whoever wrote them is looking: wrong ones are an errs.Invalid on the
// setting. A CA that is away at the moment refuses nothing: the issuer is stored as FAILING, with why.
func (c *Core) tryRemote(ctx context.Context, t issuer.Type, public json.RawMessage, secrets map[string]secretbox.Secret, row *store.Issuer) error {
	if !t.Capabilities.Async {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	connector, err := t.New(ctx, issuer.Config{Settings: public, Secrets: secrets}, issuer.Deps{Now: c.deps.Now})
	if err == nil {
		ca, ok := connector.(issuer.Tester)
		if !ok {
			return nil
		}
		err = ca.Test(ctx)
	}
	row.Status, row.LastTestTime, row.LastError = IssuerOK, c.now(), ""
	if err == nil {
		return nil
	}
	if _, ok := asPermanent(err); ok || errs.IsKind(err, errs.Invalid) {
		return settingsError(err)
	}
	row.Status, row.LastError = IssuerFailing, shown(err)
	return nil
}

// TryEdit is tryRemote for the settings that an issuer would have after an edit, and tells how it went. It runs before the transaction of
// UpdateIssuer, because a CA may be slow.
func (c *Core) TryEdit(ctx context.Context, id string, e IssuerEdit) (IssuerTest, error) {
	if e.Settings == nil && len(e.Merge) == 0 {
		return IssuerTest{}, nil
	}
	i, err := c.GetIssuer(ctx, id)
	if err != nil {
		return IssuerTest{}, err
	}
	t, ok := c.deps.Types.Lookup(i.Type)
	if !ok || !t.Capabilities.Async {
		return IssuerTest{}, nil
	}
	wanted, err := wantedSettings(i, e)
	if err != nil {
		return IssuerTest{}, err
	}
	s, err := splitSettings(t, wanted, i.SecretNames)
	if err != nil {
		return IssuerTest{}, err
	}
	stored, err := store.GetSecrets(ctx, c.deps.DB.Pool, id)
	if err != nil {
		return IssuerTest{}, err
	}
	// Only those that stay: one that is given anew may be one that cannot be opened.
	for _, name := range s.kept {
		if s.secrets[name], err = c.openSecret(id, name, stored[name]); err != nil {
			return IssuerTest{}, settingsError(err)
		}
	}
	i.Status = "" // a type without a test has none
	err = c.tryRemote(ctx, t, s.public, s.secrets, &i)
	return IssuerTest{Status: i.Status, Time: i.LastTestTime, Error: i.LastError}, err
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
	if ca, ok := in.Issuer.(issuer.Tester); ok {
		return in.caps.MaxValidity, ca.Test(ctx)
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
		return Credentials{}, instanceError(i, err)
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

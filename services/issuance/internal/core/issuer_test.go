package core

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

func (w *world) deleteIssuer(id string) error {
	return w.tx(func(ctx context.Context, tx pgx.Tx) error { return w.DeleteIssuer(ctx, tx, id, 0) })
}

func (w *world) tryIssuer(in NewIssuer) error {
	draft, err := w.DraftIssuer(w.ctx(), in)
	if err != nil {
		return err
	}
	return w.tx(func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.CreateIssuer(ctx, tx, draft)
		return err
	})
}

func TestAnEditedLocalIssuerIsTheSameCAAfterARestartToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)

	for _, e := range []IssuerEdit{
		{Merge: Settings{"crl_urls": []any{"http://crl.example.com/local.crl"}}},
		{Settings: &Settings{"issuing_certificate_urls": []any{"http://crl.example.com/ca.cer"}}},
		{Settings: &Settings{local.MaterialField: map[string]any{"set": true}}},
		{Settings: &Settings{"crl_urls": []any{"http://crl.example.com/local.crl"}}},
	} {
		w.updateIssuer(DefaultIssuerID, e)
		for _, c := range []*Core{w.Core, w.replica()} {
			after, err := c.CACertificates(w.ctx(), DefaultIssuerID)
			require.NoError(t, err)
			require.Equal(t, string(before), string(after))
		}
	}
	_, o := w.issue(DefaultIssuerID)
	require.Equal(t, []string{"http://crl.example.com/local.crl"}, w.leaf(o.ID).CRLDistributionPoints)
}

func TestAChangeRebuildsOneConnectorOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.issue(DefaultIssuerID)
	w.issue(fakeIssuer)
	other := w.instances.byID[fakeIssuer]
	mine := w.instances.byID[DefaultIssuerID]
	name := "New name"
	w.updateIssuer(DefaultIssuerID, IssuerEdit{Name: &name})
	w.issue(DefaultIssuerID)
	require.Same(t, mine, w.instances.byID[DefaultIssuerID], "a name is no setting")

	w.updateIssuer(DefaultIssuerID, IssuerEdit{Merge: Settings{"crl_urls": []any{"http://crl.example.com/x.crl"}}})
	w.issue(DefaultIssuerID)

	require.NotSame(t, mine, w.instances.byID[DefaultIssuerID])
	require.Same(t, other, w.instances.byID[fakeIssuer])
}

func TestSecretsAreSealedKeptAndReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i := w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true, Settings: Settings{"token": "first-s3cret"}})
	shown, err := ShownSettings(i)
	require.NoError(t, err)
	require.Equal(t, Settings{"token": map[string]any{"set": true}}, shown)
	opened := func() string {
		secrets, err := w.openSecrets(w.ctx(), w.deps.DB.Pool, "iss-blind")
		require.NoError(t, err)
		return secrets["token"].Reveal()
	}

	kept := w.updateIssuer("iss-blind", IssuerEdit{Settings: &shown})
	require.Equal(t, "first-s3cret", opened())
	require.Equal(t, i.ConfigHash, kept.ConfigHash)
	replaced := w.updateIssuer("iss-blind", IssuerEdit{Merge: Settings{"token": "second-s3cret"}})
	require.Equal(t, "second-s3cret", opened())
	require.NotEqual(t, i.ConfigHash, replaced.ConfigHash)
	w.updateIssuer("iss-blind", IssuerEdit{Settings: &Settings{}})
	require.Empty(t, opened())

	err = w.tryIssuer(NewIssuer{Name: "x", Type: "blind", Settings: shown})
	require.Equal(t, errs.Invalid, errs.KindOf(err), "there is nothing to keep yet")

	// A sealed secret opens in its own place only.
	w.updateIssuer("iss-blind", IssuerEdit{Merge: Settings{"token": "third-s3cret"}})
	_, err = w.deps.DB.Pool.Exec(w.ctx(), `UPDATE issuer_secrets SET sealed = (SELECT sealed FROM issuer_secrets WHERE issuer_id = 'iss-blind') WHERE issuer_id = $1`, DefaultIssuerID)
	require.NoError(t, err)
	_, err = w.replica().CACertificates(w.ctx(), DefaultIssuerID)
	require.Error(t, err)
}

func TestSecretsAreInNoTableEventOrLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "top-s3cret-token"
	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true, Settings: Settings{"token": secret}})
	w.updateIssuer("iss-blind", IssuerEdit{Merge: Settings{"token": secret + "2"}})
	w.issue("iss-blind")
	w.issue(DefaultIssuerID)
	_, err := w.TestIssuer(w.ctx(), "iss-blind")
	require.NoError(t, err)

	admin := w.db.Admin(t)
	rows, err := admin.Query(w.ctx(), `SELECT table_name FROM information_schema.tables WHERE table_schema = 'issuance'`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(tables), 8)
	for _, table := range tables {
		for _, text := range []string{secret, "PRIVATE KEY"} {
			var n int
			require.NoError(t, admin.QueryRow(w.ctx(), fmt.Sprintf(`SELECT count(*) FROM issuance.%s t
 WHERE position($1 in t::text) > 0 OR position(encode(convert_to($1, 'UTF8'), 'hex') in t::text) > 0`, table), text).Scan(&n))
			require.Zero(t, n, "%s in %s", text, table)
		}
	}
	for _, line := range w.logs.All() {
		require.NotContains(t, fmt.Sprint(line.Message, line.ContextMap()), secret)
	}
	require.NotContains(t, fmt.Sprintf("%v %+v", Settings{"token": secret}, NewIssuer{Settings: Settings{"token": secret}}), secret)
}

func TestIssuersThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]struct {
		in    NewIssuer
		field string
	}{
		"no name":       {NewIssuer{Type: "local"}, "name"},
		"unknown type":  {NewIssuer{Name: "x", Type: "acne"}, "type"},
		"bad id":        {NewIssuer{ID: "Not An Id", Name: "x", Type: "local"}, "id"},
		"unknown field": {NewIssuer{Name: "x", Type: "local", Settings: Settings{"colour": "red"}}, "config"},
		"bad URL":       {NewIssuer{Name: "x", Type: "local", Settings: Settings{"crl_urls": []any{"nope"}}}, "config.crl_urls[0]"},
		"own material":  {NewIssuer{Name: "x", Type: "local", Settings: Settings{"material": "mine"}}, "config.material"},
		"no files":      {NewIssuer{Name: "x", Type: "local", Settings: Settings{"certificate_file": "/nope", "key_file": "/nope"}}, "config.certificate_file"},
	} {
		err := w.tryIssuer(c.in)
		require.Equal(t, errs.Invalid, errs.KindOf(err), "%s: %v", name, err)
		require.Equal(t, c.field, errs.From(err).Violations()[0].Field, name)
	}
	err := w.tryIssuer(NewIssuer{ID: DefaultIssuerID, Name: "x", Type: "local"})
	require.Equal(t, errs.AlreadyExists, errs.KindOf(err))
}

// caFiles is a subordinate CA on disk.
type caFiles struct {
	t   *testing.T
	dir string
	m   local.Material
}

func newCAFiles(t *testing.T) caFiles {
	t.Helper()
	m, err := local.Generate(local.Subject{CommonName: "Corporate"}, time.Now())
	require.NoError(t, err)
	f := caFiles{t: t, dir: t.TempDir()}
	f.write(m)
	f.m = m
	return f
}

func (f caFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f caFiles) write(m local.Material) {
	f.t.Helper()
	require.NoError(f.t, os.WriteFile(f.path("ca.pem"), slices.Concat(m.IntermediatePEM, m.RootPEM), 0o600))
	require.NoError(f.t, os.WriteFile(f.path("ca.key"), []byte(m.IntermediateKey.Reveal()), 0o600))
}

func (f caFiles) settings() Settings {
	return Settings{"certificate_file": f.path("ca.pem"), "key_file": f.path("ca.key")}
}

func (f caFiles) renew() {
	f.t.Helper()
	renewed, err := local.RenewIntermediate(f.m, time.Now())
	require.NoError(f.t, err)
	f.write(renewed)
}

func (w *world) corporate() caFiles {
	w.t.Helper()
	f := newCAFiles(w.t)
	w.createIssuer(NewIssuer{ID: "iss-corporate", Name: "Corporate", Type: "local", Enabled: true, Settings: f.settings()})
	return f
}

func TestASubordinateCAComesFromFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.corporate()

	_, o := w.issue("iss-corporate")

	require.Equal(t, "Corporate", w.leaf(o.ID).Issuer.CommonName)
}

func TestATestOfAnIssuerLooksAtItsFilesAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.corporate()
	w.issue("iss-corporate")
	tested := func() store.Issuer {
		i, err := w.TestIssuer(w.ctx(), "iss-corporate")
		require.NoError(t, err)
		return i
	}
	require.Equal(t, IssuerOK, tested().Status)

	require.NoError(t, os.Chmod(f.path("ca.key"), 0o644))
	require.Equal(t, IssuerFailing, tested().Status)
	require.Contains(t, tested().LastError, "chmod 600")
	require.NoError(t, os.Chmod(f.path("ca.key"), 0o600))

	newCAFiles(t).copyTo(f)
	require.Equal(t, IssuerFailing, tested().Status)
	require.Contains(t, tested().LastError, "another CA")
	_, o := w.issue("iss-corporate")
	require.NoError(t, w.leaf(o.ID).CheckSignatureFrom(parsePEM(t, f.m.IntermediatePEM)), "what works stays in use")

	f.renew()
	require.Equal(t, IssuerOK, tested().Status)
	chain, err := w.CACertificates(w.ctx(), "iss-corporate")
	require.NoError(t, err)
	onDisk, err := os.ReadFile(f.path("ca.pem"))
	require.NoError(t, err)
	require.Equal(t, string(onDisk), string(chain), "what was renewed on disk is in use")
}

func (f caFiles) copyTo(other caFiles) {
	f.t.Helper()
	other.write(f.m)
}

func parsePEM(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return c
}

func TestAnIssuerThatHasIssuedDoesNotBecomeAnotherCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.corporate()
	other, third := newCAFiles(t).settings(), newCAFiles(t).settings()
	try := func(s Settings) error {
		return w.tx(func(ctx context.Context, tx pgx.Tx) error {
			_, err := w.UpdateIssuer(ctx, tx, "iss-corporate", 0, IssuerEdit{Settings: &s})
			return err
		})
	}
	require.NoError(t, try(other), "it has not issued yet")
	w.issue("iss-corporate")

	for name, s := range map[string]Settings{"other files": third, "self-made": {}} {
		err := try(s)
		require.Equal(t, errs.Invalid, errs.KindOf(err), name)
		require.Equal(t, "config.certificate_file", errs.From(err).Violations()[0].Field, name)
	}
	require.NoError(t, try(other))
}

func TestATestOfOtherSettingsCountsNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.TestIssuer(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	name := "Renamed"
	require.Equal(t, IssuerOK, w.updateIssuer(DefaultIssuerID, IssuerEdit{Name: &name}).Status)

	i := w.updateIssuer(DefaultIssuerID, IssuerEdit{Merge: Settings{"crl_urls": []any{"http://crl.example.com/local.crl"}}})

	require.Equal(t, IssuerUntested, i.Status)
	require.True(t, i.LastTestTime.IsZero())
}

func TestTheLongestValidityIsTheSameWhoeverIsAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	text, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	ca := parsePEM(t, text)
	for _, c := range []*Core{w.Core, w.replica()} {
		i, err := c.GetIssuer(w.ctx(), DefaultIssuerID)
		require.NoError(t, err)
		require.Equal(t, ca.NotAfter.Sub(ca.NotBefore), c.Capabilities(i).MaxValidity)
	}
}

func TestAnIssuerInUseIsNotDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.peers.certificates = 3
	err := w.CheckIssuerUnused(w.ctx(), fakeIssuer)
	require.Equal(t, "ISSUER_IN_USE", errs.ReasonOf(err))
	require.Equal(t, "3", errs.MetaOf(err)["certificates"])
	require.Equal(t, "PROFILE_IN_USE", errs.ReasonOf(w.CheckProfileUnused(w.ctx(), openProfile)))
	w.peers.certificates = 0
	require.NoError(t, w.CheckIssuerUnused(w.ctx(), fakeIssuer))

	r := w.pending()
	require.Equal(t, "ISSUER_IN_USE", errs.ReasonOf(w.deleteIssuer(fakeIssuer)))
	err = w.tx(func(ctx context.Context, tx pgx.Tx) error { return w.DeleteProfile(ctx, tx, openProfile, 0) })
	require.Equal(t, "PROFILE_IN_USE", errs.ReasonOf(err))
	_, err = w.Cancel(w.ctx(), r.OrderID)
	require.NoError(t, err)
	require.NoError(t, w.deleteIssuer(fakeIssuer))

	w.createIssuer(NewIssuer{ID: "iss-fresh", Name: "Fresh", Type: "local", Enabled: true})
	require.NoError(t, w.deleteIssuer("iss-fresh"))
	_, err = store.GetIssuer(w.ctx(), w.deps.DB.Pool, "iss-fresh")
	require.ErrorIs(t, err, store.ErrNotFound, "one that never issued is gone with its keys")
}

func TestATestOfAnIssuerIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i, err := w.TestIssuer(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	require.Equal(t, IssuerOK, i.Status)

	_, err = w.DraftIssuer(w.ctx(), NewIssuer{Name: "Blind", Type: "blind", Settings: Settings{"token": "wrong"}})
	require.Equal(t, errs.Invalid, errs.KindOf(err), "who gives wrong credentials hears it at once")
	require.Equal(t, "TOKEN_REFUSED", errs.MetaOf(err)["reason"])

	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true, Settings: Settings{"token": "once"}})
	_, err = w.TestIssuer(w.ctx(), "iss-blind")
	require.NoError(t, err)
	stored, err := w.GetIssuer(w.ctx(), "iss-blind")
	require.NoError(t, err)
	require.Equal(t, IssuerFailing, stored.Status)
	require.Equal(t, "the token is refused", stored.LastError)
	require.EqualValues(t, 1, stored.Revision)
	require.False(t, stored.LastTestTime.IsZero())
}

func TestProfilesAreCheckedAndCompleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, err := w.GetProfile(w.ctx(), DefaultProfileID)
	require.NoError(t, err)
	require.Equal(t, DefaultValidity, p.MaxValidity)
	require.True(t, p.AllowWildcards)
	require.Equal(t, []string{ServerAuth}, p.ExtendedKeyUsages)
	require.Equal(t, []string{"ECDSA_P256", "ECDSA_P384", "RSA_2048", "RSA_3072", "RSA_4096", "ED25519"}, p.AllowedKeyAlgorithms)

	for field, bad := range map[string]store.Profile{
		"name":                    {},
		"max_validity":            {Name: "x", MaxValidity: 10*time.Minute - time.Second},
		"approval_timeout":        {Name: "x", ApprovalTimeout: time.Second},
		"allowed_san_patterns[1]": {Name: "x", AllowedSANPatterns: []string{"example.com", "*"}},
		"id":                      {ID: "a--b", Name: "x"},
	} {
		err := w.tx(func(ctx context.Context, tx pgx.Tx) error {
			_, err := w.CreateProfile(ctx, tx, bad)
			return err
		})
		require.Equal(t, errs.Invalid, errs.KindOf(err), field)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
	tooLong := w.tx(func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.CreateProfile(ctx, tx, store.Profile{Name: "x", MaxValidity: 11 * 366 * 24 * time.Hour})
		return err
	})
	require.Equal(t, errs.Invalid, errs.KindOf(tooLong))
}

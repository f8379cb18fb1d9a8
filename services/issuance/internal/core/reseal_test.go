package core

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// box makes one with keys in the order given.
func box(t *testing.T, keys ...secretbox.Key) *secretbox.Box {
	t.Helper()
	b, err := secretbox.NewBox(keys...)
	require.NoError(t, err)
	return b
}

// with is a replica that has other encryption keys.
func (w *world) with(keys ...secretbox.Key) *Core {
	w.t.Helper()
	w.box = box(w.t, keys...)
	return w.replica()
}

func (w *world) resealed(c *Core) Resealed {
	w.t.Helper()
	r, err := c.Reseal(w.ctx())
	require.NoError(w.t, err)
	return r
}

func (w *world) token(c *Core, issuerID string) string {
	w.t.Helper()
	secrets, err := c.openSecrets(w.ctx(), c.deps.DB.Pool, issuerID)
	require.NoError(w.t, err)
	return secrets["token"].Reveal()
}

const toldResealed = "every secret at rest is under the first key of CERTCTL_ENCRYPTION_KEY; when all replicas of issuance say so, its other lines are no longer needed"

func TestAnEncryptionKeyIsReplacedStepByStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old, next := secretbox.GenerateKey(), secretbox.GenerateKey()
	first := w.with(old)
	// The world began with a key of its own; what this test is about is stored under the old one.
	require.NoError(t, w.deleteSecrets())
	const n = sealedBatch + 50
	for i := range n {
		w.createSealed(first, fmt.Sprintf("iss-%03d", i))
	}
	require.Equal(t, Resealed{}, w.resealed(first))

	both := w.with(old, next)
	require.NoError(t, both.Bootstrap(w.ctx()))
	require.Equal(t, Resealed{}, w.resealed(both), "a key below the others encrypts nothing")
	require.Equal(t, "s3cret of iss-007", w.token(first, "iss-007"), "a replica with the old key alone goes on")

	turned := w.with(next, old)
	require.NoError(t, turned.Bootstrap(w.ctx()))
	w.logs.TakeAll()
	require.Equal(t, Resealed{Done: n}, w.resealed(turned))
	require.Equal(t, Resealed{}, w.resealed(turned))
	told := w.logs.FilterMessage(toldResealed).All()
	require.Len(t, told, 1, "it is said once")
	require.Equal(t, next.String(), told[0].ContextMap()["key"])
	require.Equal(t, "s3cret of iss-007", w.token(both, "iss-007"), "a replica of the step before goes on")

	// A replica of the step before stores something after all were resealed.
	w.createSealed(both, "iss-late")
	require.Equal(t, Resealed{Done: 1}, w.resealed(turned))

	last := w.with(next)
	require.NoError(t, last.Bootstrap(w.ctx()))
	for _, id := range []string{"iss-000", "iss-249", "iss-late"} {
		require.Equal(t, "s3cret of "+id, w.token(last, id))
	}
}

func TestASecretUnderALostKeyStopsItsIssuerAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost, next := secretbox.GenerateKey(), secretbox.GenerateKey()
	require.NoError(t, w.deleteSecrets())
	w.createSealed(w.with(lost), "iss-lost")
	w.createSealed(w.with(lost), "iss-gone")
	w.createSealed(w.with(next), "iss-found")
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE issuers SET delete_time = now() WHERE id = 'iss-gone'`)
	require.NoError(t, err)

	last := w.with(next)
	require.NoError(t, last.Bootstrap(w.ctx()))
	for range 2 {
		w.logs.TakeAll()
		require.Equal(t, Resealed{Unreadable: 2}, w.resealed(last))
		told := w.logs.FilterFieldKey("field").All()
		require.Len(t, told, 2, "in each run")
		for _, entry := range told {
			level := zap.ErrorLevel
			if entry.ContextMap()["issuer_id"] == "iss-gone" {
				level = zap.WarnLevel
			}
			require.Equal(t, level, entry.Level)
			require.Equal(t, lost.String(), entry.ContextMap()["key"])
		}
	}
	require.Zero(t, w.logs.FilterMessage(toldResealed).Len())
	require.Equal(t, "s3cret of iss-found", w.token(last, "iss-found"))

	i, err := store.GetIssuer(w.ctx(), w.deps.DB.Pool, "iss-lost")
	require.NoError(t, err)
	_, err = last.openSecrets(w.ctx(), w.deps.DB.Pool, "iss-lost")
	require.ErrorIs(t, err, secretbox.ErrUnknownKey)
	err = instanceError(i, err)
	require.Equal(t, errs.Unavailable, errs.KindOf(err))
	for _, word := range []string{"iss-lost", "token", lost.String(), "CERTCTL_ENCRYPTION_KEY", "give the secret anew"} {
		require.Contains(t, errs.From(err).Message(), word)
	}

	// The way out that is named.
	require.NoError(t, store.PutSecret(w.ctx(), w.deps.DB.Pool, "iss-lost", "token", last.seal("iss-lost", map[string]secretbox.Secret{"token": secretbox.NewSecret("another")})["token"]))
	require.Equal(t, Resealed{Unreadable: 1}, w.resealed(last))
	require.Equal(t, "another", w.token(last, "iss-lost"))
}

func TestKeysThatOpenNothingAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	needed := secretbox.GenerateKey()
	require.NoError(t, w.deleteSecrets())
	first := w.with(needed)
	w.createSealed(first, "iss-a")
	w.createSealed(first, "iss-b")
	err := w.with(secretbox.GenerateKey(), secretbox.GenerateKey()).Bootstrap(w.ctx())
	require.ErrorIs(t, err, secretbox.ErrUnknownKey)
	for _, word := range []string{"CERTCTL_ENCRYPTION_KEY", "iss-a, iss-b", needed.String()} {
		require.ErrorContains(t, err, word)
	}
	require.NoError(t, w.deleteSecrets())
	require.NoError(t, w.with(secretbox.GenerateKey()).Bootstrap(w.ctx()), "the way out that is named")
}

// TestASecretThatIsReplacedMeanwhileIsNotPutBack also counts: what others have brought under the first key is not left.
func TestASecretThatIsReplacedMeanwhileIsNotPutBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old, next := secretbox.GenerateKey(), secretbox.GenerateKey()
	before := w.with(old)
	require.NoError(t, w.deleteSecrets())
	w.createSealed(before, "iss-a")
	all, err := store.ListSecrets(w.ctx(), w.deps.DB.Pool, store.SealedSecret{}, 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	turned := w.with(next, old)
	put := func(by *Core, text string) {
		require.NoError(t, store.PutSecret(w.ctx(), w.deps.DB.Pool, "iss-a", "token", by.deps.Box.Seal([]byte(text), secretPlace("iss-a", "token"))))
	}
	reseal := func() (r Resealed) {
		require.NoError(t, turned.reseal(w.ctx(), all[0], &r))
		return r
	}
	put(turned, "another")
	require.Equal(t, Resealed{}, reseal(), "it is under the first key")
	require.Equal(t, "another", w.token(turned, "iss-a"))
	put(before, "a third")
	require.Equal(t, Resealed{Done: 1}, reseal(), "it was stored under the old one")
	require.Equal(t, "a third", w.token(w.with(next), "iss-a"))
	require.NoError(t, w.deleteSecrets())
	require.Equal(t, Resealed{}, reseal(), "there is none any more")
}

func (w *world) deleteSecrets() error {
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `DELETE FROM issuer_secrets`)
	return err
}

// createSealed stores an issuer with one secret, as the replica seals it.
func (w *world) createSealed(c *Core, id string) {
	w.t.Helper()
	require.NoError(w.t, store.InsertIssuer(w.ctx(), c.deps.DB.Pool, store.Issuer{ID: id, Name: id, Type: "blind", Config: []byte(`{}`), ConfigHash: id}))
	for name, sealed := range c.seal(id, map[string]secretbox.Secret{"token": secretbox.NewSecret("s3cret of " + id)}) {
		require.NoError(w.t, store.PutSecret(w.ctx(), c.deps.DB.Pool, id, name, sealed))
	}
}

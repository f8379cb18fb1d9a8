package core

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

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

func TestAKeyThatIsStillNeededCannotBeDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost, next := secretbox.GenerateKey(), secretbox.GenerateKey()
	require.NoError(t, w.deleteSecrets())
	w.createSealed(w.with(lost), "iss-lost")
	w.createSealed(w.with(next), "iss-found")

	last := w.with(next)
	err := last.Bootstrap(w.ctx())
	require.ErrorIs(t, err, secretbox.ErrUnknownKey)
	for _, word := range []string{"CERTCTL_ENCRYPTION_KEY", "iss-lost", lost.String()} {
		require.ErrorContains(t, err, word)
	}
	require.NotContains(t, err.Error(), "iss-found")
	w.logs.TakeAll()
	require.Equal(t, Resealed{Left: 1}, w.resealed(last), "what cannot be opened is counted")
	require.Equal(t, 1, w.logs.FilterFieldKey("field").Len(), "and told")
	require.Zero(t, w.logs.FilterMessage(toldResealed).Len())
}

func TestASecretThatIsReplacedMeanwhileIsNotPutBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.with(secretbox.GenerateKey())
	require.NoError(t, w.deleteSecrets())
	w.createSealed(c, "iss-a")
	all, err := store.ListSecrets(w.ctx(), c.deps.DB.Pool, store.SealedSecret{}, 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.NoError(t, store.PutSecret(w.ctx(), c.deps.DB.Pool, "iss-a", "token", c.deps.Box.Seal([]byte("another"), secretPlace("iss-a", "token"))))
	done, err := c.reseal(w.ctx(), all[0])
	require.NoError(t, err)
	require.False(t, done)
	require.Equal(t, "another", w.token(c, "iss-a"))
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

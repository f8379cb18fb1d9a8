package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

const (
	oldKey = "the key of before"
	newKey = "the key of after"
)

// with is a replica of audit that has other keys.
func (b bundle) with(t *testing.T, keys ...string) bundle {
	t.Helper()
	list := make([][]byte, 0, len(keys))
	for _, k := range keys {
		list = append(list, []byte(k))
	}
	b.store = store.New(b.database.Open(t, "audit"), core.NewSealer(list...), zap.NewNop())
	return b
}

func keyed(t *testing.T, keys ...string) bundle {
	t.Helper()
	d := testpg.NewDatabase(t, store.Schema())
	return bundle{database: d, admin: d.Admin(t)}.with(t, keys...)
}

// checkpoint does what the loop does.
func (b bundle) checkpoint(t *testing.T) {
	t.Helper()
	b.sealAnew(t)
	r, err := b.store.VerifyNew(t.Context())
	require.NoError(t, err)
	require.Nil(t, r.Fault)
	require.NoError(t, b.store.AddCheckpoint(t.Context(), r.Last))
}

func (b bundle) sealAnew(t *testing.T) store.Sealed {
	t.Helper()
	sealed, err := b.store.SealAnew(t.Context(), false)
	require.NoError(t, err)
	return sealed
}

func (b bundle) fault(t *testing.T) *core.Fault {
	t.Helper()
	r, err := b.store.Verify(t.Context(), 0, 0)
	require.NoError(t, err)
	return r.Fault
}

// TestTheChainStaysValidWhileTheSecretIsReplaced rolls two replicas through the stages of a rotation. In each they work side
// by side with those of the stage before.
func TestTheChainStaysValidWhileTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	stages := [][]string{{oldKey}, {oldKey, newKey}, {newKey, oldKey}, {newKey}}
	before := keyed(t, stages[0]...)
	before.append(t, 3)
	before.checkpoint(t)
	for _, keys := range stages[1:] {
		after := before.with(t, keys...)
		after.checkpoint(t)
		before.append(t, 2) // the replica that goes has the last word
		require.Nil(t, after.fault(t))
		after.append(t, 2)
		require.Nil(t, before.fault(t))
		before.checkpoint(t)
		require.Nil(t, after.fault(t))
		before.append(t, 1)
		before = after
	}
	require.Nil(t, before.fault(t))
	require.Equal(t, store.Sealed{}, before.sealAnew(t))
	before.append(t, 1)
	fault := before.with(t, oldKey).fault(t)
	require.NotNil(t, fault, "the old key is worth nothing any more")
	require.Equal(t, core.ReasonHead, fault.Reason)
	require.Contains(t, fault.Message, "this replica lacks the newest secret")
}

func TestAQuietChainStaysValidWhileTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	b.append(t, 4)
	b.checkpoint(t)
	both := b.with(t, oldKey, newKey)
	require.Equal(t, store.Sealed{Done: 2}, both.sealAnew(t), "the head and the checkpoint")
	require.Equal(t, store.Sealed{}, both.sealAnew(t))
	require.Equal(t, store.Sealed{}, b.with(t, newKey, oldKey).sealAnew(t))
	require.Nil(t, b.with(t, newKey).fault(t))
	require.Nil(t, b.fault(t), "a replica with the old key alone goes on")
}

func TestASecretThatWasDroppedTooEarlyIsToldFromTampering(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	b.append(t, 4)
	b.checkpoint(t)
	b.append(t, 2)
	early := b.with(t, newKey)
	fault := early.fault(t)
	require.NotNil(t, fault)
	require.Equal(t, core.ReasonSecret, fault.Reason)
	require.EqualValues(t, 4, fault.Sequence)
	require.Contains(t, fault.Message, "CERTCTL_INTERNAL_SECRET")
	require.Equal(t, store.Sealed{Left: 2}, early.sealAnew(t))
	early.append(t, 1)
	require.EqualValues(t, 8, b.length(t), "what it appended to is marked")
	require.Equal(t, core.ReasonSecret, early.fault(t).Reason, "the head is ours again, the checkpoint is not")

	// The way out: the old one is put back at the end, and may go when all is sealed.
	back := b.with(t, newKey, oldKey)
	require.Nil(t, back.fault(t), "the seals that were marked are right")
	require.Equal(t, store.Sealed{Done: 2}, back.sealAnew(t))
	back.checkpoint(t)
	require.Nil(t, early.fault(t), "somebody who had the secret has verified the mark")
	early.append(t, 1)
	require.EqualValues(t, 9, b.length(t))
}

func (b bundle) length(t *testing.T) (n int64) {
	t.Helper()
	require.NoError(t, b.admin.QueryRow(t.Context(), `SELECT sequence FROM audit.head`).Scan(&n))
	return n
}

const (
	cutOff = `WITH gone AS (DELETE FROM audit.events WHERE sequence > 5) UPDATE audit.head SET sequence = 5, hash = (SELECT hash FROM audit.events WHERE sequence = 5)`
	// disguised is a seal that claims another secret.
	disguised = cutOff + `, mac = 'x', key_ids = '{forged}', macs = '{x}'`
)

// TestAnAppendDoesNotMakeGoodAnEndThatDoesNotFit cuts off what came after the checkpoint.
func TestAnAppendDoesNotMakeGoodAnEndThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"a seal of before": cutOff, "a seal of another secret": disguised,
		"no seal":       cutOff + `, mac = '', key_ids = '{}', macs = '{}'`,
		"seals at odds": cutOff + `, key_ids = '{a,b}', macs = '{}'`,
		"an endless seal": cutOff + `, mac = decode(repeat('00', 100000), 'hex'), key_ids = array_fill('\x01'::bytea, ARRAY[1000]),
 macs = array_fill('\x02'::bytea, ARRAY[1000])`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := keyed(t, oldKey)
			b.append(t, 4)
			b.checkpoint(t)
			b.append(t, 4)
			b.tamper(t, sql)
			require.Equal(t, core.ReasonHead, b.fault(t).Reason)
			require.Equal(t, store.Sealed{Left: 1}, b.sealAnew(t))
			for range 2 {
				b.append(t, 2)
				fault := b.fault(t)
				require.NotNil(t, fault)
				require.Equal(t, core.ReasonHead, fault.Reason)
				require.EqualValues(t, 6, fault.Sequence, "where the mark is")
				r, err := b.store.VerifyNew(t.Context())
				require.NoError(t, err)
				require.Equal(t, fault, r.Fault, "so no checkpoint will settle it")
			}
			require.EqualValues(t, 10, b.length(t), "it is marked once")
			b.tamper(t, `UPDATE audit.events SET action = 'certificate.created' WHERE sequence = 6`)
			require.Equal(t, core.ReasonHash, b.fault(t).Reason)
		})
	}
}

func TestAMarkIsAlsoToldByAWalkOfAPart(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	b.append(t, 8)
	b.tamper(t, disguised)
	b.append(t, 2)
	for first, reason := range map[int64]string{1: core.ReasonSecret, 6: core.ReasonSecret, 7: ""} {
		r, err := b.store.Verify(t.Context(), first, 7)
		require.NoError(t, err)
		if reason == "" {
			require.Nil(t, r.Fault, "a walk from %d", first)
			continue
		}
		require.NotNil(t, r.Fault, "a walk from %d", first)
		require.Equal(t, reason, r.Fault.Reason, "without a checkpoint nobody can tell")
	}
}

func TestASealThatPosesAsOursIsNotCalledGood(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	b.append(t, 2)
	b.checkpoint(t)
	both := b.with(t, oldKey, newKey)
	both.sealAnew(t)
	b.tamper(t, `UPDATE audit.checkpoint_seals SET mac = 'x' WHERE key_id = $1`, core.NewSealer([]byte(newKey)).Seal("", core.Anchor{}).Seals[0].KeyID)
	require.Equal(t, store.Sealed{Left: 1}, b.with(t, oldKey, newKey).sealAnew(t))
	require.Equal(t, store.Sealed{}, both.sealAnew(t), "it goes on where it has left nothing")
	sealed, err := both.store.SealAnew(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, store.Sealed{Left: 1}, sealed)
}

func TestTamperingIsSeenWhateverTheSecret(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		keys   []string
		sql    string
		reason string
	}{
		"an event, with both keys":         {[]string{newKey, oldKey}, `UPDATE audit.events SET actor_id = 'x' WHERE sequence = 5`, core.ReasonHash},
		"an event, without the secret":     {[]string{newKey}, `UPDATE audit.events SET actor_id = 'x' WHERE sequence = 5`, core.ReasonHash},
		"the end, without the secret":      {[]string{newKey}, `DELETE FROM audit.events WHERE sequence > 5`, core.ReasonHead},
		"a checkpoint's hash":              {[]string{newKey}, `UPDATE audit.checkpoints SET hash = sha256('x')`, core.ReasonAnchor},
		"a checkpoint's MACs":              {[]string{oldKey}, `WITH c AS (UPDATE audit.checkpoints SET mac = 'x') UPDATE audit.checkpoint_seals SET mac = 'x'`, core.ReasonAnchor},
		"a checkpoint's MACs, both keys":   {[]string{newKey, oldKey}, `WITH c AS (UPDATE audit.checkpoints SET mac = 'x') UPDATE audit.checkpoint_seals SET mac = 'x'`, core.ReasonAnchor},
		"a checkpoint without any seal":    {[]string{newKey, oldKey}, `WITH c AS (UPDATE audit.checkpoints SET mac = 'x') DELETE FROM audit.checkpoint_seals`, core.ReasonAnchor},
		"a head cut off":                   {[]string{oldKey, newKey}, `WITH gone AS (DELETE FROM audit.events WHERE sequence > 4) UPDATE audit.head SET sequence = 4, hash = (SELECT hash FROM audit.events WHERE sequence = 4)`, core.ReasonHead},
		"a seal that poses as another key": {[]string{newKey, oldKey}, `WITH c AS (UPDATE audit.checkpoints SET mac = 'x') UPDATE audit.checkpoint_seals SET mac = 'x', key_id = 'forged'`, core.ReasonSecret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := keyed(t, oldKey)
			b.append(t, 4)
			b.checkpoint(t)
			b.append(t, 2)
			b.tamper(t, c.sql)
			replica := b.with(t, c.keys...)
			replica.sealAnew(t) // which must not make good what did not fit
			fault := replica.fault(t)
			require.NotNil(t, fault)
			require.Equal(t, c.reason, fault.Reason)
		})
	}
}

// TestTheVersionBeforeAppendsBesideThisOne writes the head as the version before does, which knows no seals.
func TestTheVersionBeforeAppendsBesideThisOne(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	b.append(t, 2)
	require.Equal(t, store.Sealed{}, b.sealAnew(t))
	b.append(t, 1)
	b.tamper(t, `UPDATE audit.head SET key_ids = '{}', macs = '{}'`) // its first start on a database of before
	require.Nil(t, b.fault(t))
	require.Equal(t, store.Sealed{Done: 1}, b.sealAnew(t))
	b.tamper(t, `CREATE TABLE audit.stale AS SELECT * FROM audit.head`)
	b.append(t, 1)
	b.tamper(t, `UPDATE audit.head AS h SET key_ids = s.key_ids, macs = s.macs FROM audit.stale AS s`) // it moved the head, and left the seals
	require.Nil(t, b.fault(t))
	require.Equal(t, store.Sealed{Done: 1}, b.sealAnew(t))
	require.Nil(t, b.with(t, oldKey, newKey).fault(t))
}

func TestManyCheckpointsAreSealedAnewWhileOthersAppend(t *testing.T) {
	t.Parallel()
	b := keyed(t, oldKey)
	const n = 1203 // several batches
	b.append(t, n)
	r, err := b.store.Verify(t.Context(), 0, 0)
	require.NoError(t, err)
	require.EqualValues(t, n, r.Checked)
	sealer := core.NewSealer([]byte(oldKey))
	rows, err := b.admin.Query(t.Context(), `SELECT sequence, hash FROM audit.events ORDER BY sequence`)
	require.NoError(t, err)
	var anchors []core.Anchor
	for rows.Next() {
		var a core.Anchor
		require.NoError(t, rows.Scan(&a.Sequence, &a.Hash))
		anchors = append(anchors, sealer.Seal(core.KindCheckpoint, a))
	}
	require.NoError(t, rows.Err())
	for _, a := range anchors {
		require.NoError(t, b.store.AddCheckpoint(t.Context(), a))
	}
	var g errgroup.Group
	for _, replica := range []bundle{b.with(t, oldKey, newKey), b.with(t, oldKey, newKey)} {
		g.Go(func() error {
			_, err := replica.store.SealAnew(t.Context(), false)
			return err
		})
		g.Go(func() error {
			for range 20 {
				if _, err := replica.store.Append(t.Context(), events(2)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	last := b.with(t, newKey)
	require.Equal(t, store.Sealed{}, last.sealAnew(t))
	require.Nil(t, last.fault(t))
}

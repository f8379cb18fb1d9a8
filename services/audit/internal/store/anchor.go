package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/services/audit/internal/core"
)

// sealBatch is how many checkpoints are sealed at once.
const sealBatch = 500

const checkpointColumns = `c.sequence, c.hash, c.time, c.mac,
 ARRAY(SELECT s.key_id FROM checkpoint_seals s WHERE s.sequence = c.sequence ORDER BY s.key_id),
 ARRAY(SELECT s.mac FROM checkpoint_seals s WHERE s.sequence = c.sequence ORDER BY s.key_id)`

func scanCheckpoint(row pgx.CollectableRow) (a core.Anchor, err error) {
	var ids, macs [][]byte
	err = row.Scan(&a.Sequence, &a.Hash, &a.Time, &a.MAC, &ids, &macs)
	a.Seals = seals(ids, macs)
	return a, err
}

func checkpoints(ctx context.Context, q querier, sql string, args ...any) ([]core.Anchor, error) {
	rows, err := q.Query(ctx, `SELECT `+checkpointColumns+` FROM checkpoints c `+sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	return list, nil
}

// seals joins two columns. Somebody who changed only one of them has made what fits nothing.
func seals(ids, macs [][]byte) []core.Seal {
	out := make([]core.Seal, 0, len(ids))
	for i := range min(len(ids), len(macs)) {
		out = append(out, core.Seal{KeyID: ids[i], MAC: macs[i]})
	}
	return out
}

// columnsOf is the reverse of seals.
func columnsOf(a core.Anchor) (ids, macs [][]byte) {
	for _, s := range a.Seals {
		ids, macs = append(ids, s.KeyID), append(macs, s.MAC)
	}
	return ids, macs
}

// Checkpoint answers the newest checkpoint; ok is false when there is none yet.
func (s *Store) Checkpoint(ctx context.Context) (a core.Anchor, ok bool, err error) {
	return newest(ctx, s.db.Pool)
}

func newest(ctx context.Context, q querier) (a core.Anchor, ok bool, err error) {
	list, err := checkpoints(ctx, q, `ORDER BY c.sequence DESC LIMIT 1`)
	if err != nil || len(list) == 0 {
		return a, false, err
	}
	return list[0], true, nil
}

func anchorsBetween(ctx context.Context, q querier, first, last int64) (map[int64]core.Anchor, error) {
	list, err := checkpoints(ctx, q, `WHERE c.sequence BETWEEN $1 AND $2`, first, last)
	if err != nil {
		return nil, err
	}
	anchors := make(map[int64]core.Anchor, len(list))
	for _, a := range list {
		anchors[a.Sequence] = a
	}
	return anchors, nil
}

// AddCheckpoint anchors a verified place. A place that is anchored already stays as it is.
func (s *Store) AddCheckpoint(ctx context.Context, a core.Anchor) error {
	a = s.sealer.Seal(core.KindCheckpoint, a)
	ids, macs := columnsOf(a)
	_, err := s.db.Pool.Exec(ctx, `WITH c AS (
 INSERT INTO checkpoints (sequence, hash, time, mac) VALUES ($1, $2, now(), $3) ON CONFLICT (sequence) DO NOTHING RETURNING sequence)
INSERT INTO checkpoint_seals (sequence, key_id, mac) SELECT c.sequence, s.key_id, s.mac
 FROM c, unnest($4::bytea[], $5::bytea[]) AS s (key_id, mac) ON CONFLICT (sequence, key_id) DO NOTHING`,
		a.Sequence, a.Hash, a.MAC, ids, macs)
	if err != nil {
		return fmt.Errorf("add checkpoint: %w", err)
	}
	return nil
}

// Sealed is what SealAnew did.
type Sealed struct {
	// Done were sealed anew; Left could not be, because they fit none of our keys or have a seal that only poses as ours.
	Done, Left int
}

// SealAnew seals the head and the checkpoints with each key that they were not sealed with. What fits none of our keys is left
// as it is: a verification tells what that means. It may run on several replicas that have different keys. It begins where a run
// that left nothing has ended; one that is to be whole begins at the start.
func (s *Store) SealAnew(ctx context.Context, whole bool) (Sealed, error) {
	var done Sealed
	if err := s.sealHead(ctx, &done); err != nil {
		return done, err
	}
	last, left := s.sealedTo.Load(), done.Left
	if whole {
		last = 0
	}
	for {
		list, err := checkpoints(ctx, s.db.Pool, `WHERE c.sequence > $1 ORDER BY c.sequence LIMIT $2`, last, sealBatch)
		if err != nil {
			return done, err
		}
		if len(list) == 0 {
			break
		}
		if err := s.sealCheckpoints(ctx, list, &done); err != nil {
			return done, err
		}
		last = list[len(list)-1].Sequence
	}
	if done.Left == left {
		s.sealedTo.Store(last)
	}
	return done, nil
}

func (s *Store) sealHead(ctx context.Context, done *Sealed) error {
	head, err := readHead(ctx, s.db.Pool)
	if err != nil || head.Sequence == 0 || s.sealer.Complete(core.KindHead, head) {
		return err
	}
	if !s.sealer.Fits(core.KindHead, head) {
		done.Left++
		return nil
	}
	sealed := s.sealer.Seal(core.KindHead, head)
	ids, macs := columnsOf(sealed)
	// An append that came between has sealed another head.
	tag, err := s.db.Pool.Exec(ctx, `UPDATE head SET mac = $3, key_ids = $4, macs = $5 WHERE sequence = $1 AND hash = $2`,
		sealed.Sequence, sealed.Hash, sealed.MAC, ids, macs)
	if err != nil {
		return fmt.Errorf("seal the end of the chain: %w", err)
	}
	done.Done += int(tag.RowsAffected())
	return nil
}

func (s *Store) sealCheckpoints(ctx context.Context, list []core.Anchor, done *Sealed) error {
	var sequences []int64
	var ids, macs [][]byte
	for _, a := range list {
		switch {
		case s.sealer.Complete(core.KindCheckpoint, a):
		case !s.sealer.Fits(core.KindCheckpoint, a) || s.sealer.Forged(core.KindCheckpoint, a):
			done.Left++
		default:
			for _, seal := range s.sealer.Seal(core.KindCheckpoint, a).Seals {
				sequences, ids, macs = append(sequences, a.Sequence), append(ids, seal.KeyID), append(macs, seal.MAC)
			}
		}
	}
	if len(sequences) == 0 {
		return nil
	}
	var n int
	err := s.db.Pool.QueryRow(ctx, `WITH added AS (
 INSERT INTO checkpoint_seals (sequence, key_id, mac) SELECT s.sequence, s.key_id, s.mac
 FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS s (sequence, key_id, mac) ON CONFLICT (sequence, key_id) DO NOTHING RETURNING sequence)
SELECT count(DISTINCT sequence) FROM added`, sequences, ids, macs).Scan(&n)
	if err != nil {
		return fmt.Errorf("seal checkpoints %d to %d: %w", sequences[0], sequences[len(sequences)-1], err)
	}
	done.Done += n
	return nil
}

package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/services/audit/internal/core"
)

// walkSize is how many events one statement of a walk reads.
const walkSize = 10_000

// walk goes on from the verifier's last place to the event last (0: to the end).
func walk(ctx context.Context, tx pgx.Tx, v *core.Verifier, last int64) (*core.Fault, error) {
	for {
		after := v.Last().Sequence
		anchors, err := anchorsBetween(ctx, tx, after+1, after+walkSize)
		if err != nil {
			return nil, err
		}
		fault, read, err := stretch(ctx, tx, v, anchors, last)
		if err != nil || fault != nil || read < walkSize {
			return fault, err
		}
	}
}

// stretch walks as many events as one statement reads, as they come: Postgres reads the next ones while these are hashed. It tells
// how many it has read.
func stretch(ctx context.Context, tx pgx.Tx, v *core.Verifier, anchors map[int64]core.Anchor, last int64) (fault *core.Fault, read int, err error) {
	rows, err := tx.Query(ctx, `SELECT sequence, time, record_time, id, actor_type, actor_id, action, resource_type, resource_id, outcome, request_id, data, hash,
 previous_hash FROM events WHERE sequence > $1 AND ($2 = 0 OR sequence <= $2) ORDER BY sequence LIMIT $3`,
		pgx.QueryResultFormats{pgx.BinaryFormatCode}, v.Last().Sequence, last, walkSize)
	if err != nil {
		return nil, 0, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var r core.Row
	for rows.Next() {
		if err := readRow(rows.RawValues(), &r); err != nil {
			return nil, read, err
		}
		read++
		if fault := v.Next(&r); fault != nil {
			return fault, read, nil
		}
		if a, ok := anchors[r.Sequence]; ok {
			if fault := v.Anchored(a); fault != nil {
				return fault, read, nil
			}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, read, fmt.Errorf("read events: %w", err)
	}
	return nil, read, nil
}

// epoch is 2000-01-01, which Postgres counts times from, in microseconds since 1970.
const epoch = 946_684_800_000_000

// readRow points a row to the columns of stretch, in Postgres' binary form: numbers and times have eight bytes, texts are as they
// are.
func readRow(values [][]byte, r *core.Row) error {
	const columns, numbers = 14, 3
	if len(values) != columns {
		return fmt.Errorf("read event: %d columns", len(values))
	}
	for _, v := range values[:numbers] {
		if len(v) != 8 {
			return errors.New("read event: a number or time is not in binary form")
		}
	}
	r.Sequence = int64(binary.BigEndian.Uint64(values[0]))
	r.Time = int64(binary.BigEndian.Uint64(values[1])) + epoch
	r.RecordTime = int64(binary.BigEndian.Uint64(values[2])) + epoch
	r.ID, r.ActorType, r.ActorID, r.Action = values[3], values[4], values[5], values[6]
	r.ResourceType, r.ResourceID, r.Outcome, r.RequestID = values[7], values[8], values[9], values[10]
	r.Data, r.Hash, r.PreviousHash = values[11], values[12], values[13]
	return nil
}

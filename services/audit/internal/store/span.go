package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// SpanSize is how many events a span has. The first span that fits a time is read for events that do; the spans before it are looked at
// one by one: ten million events have 5,000.
const SpanSize = 2000

// mostSpans is how many spans an append makes. After more than one was left, by a version that knows of none, each that follows makes more
// of them until all are there.
const mostSpans = 20

// allSpans are the spans, and one with the events after them, of which nothing is known yet.
const allSpans = `(SELECT first, last, earliest, latest FROM spans
 UNION ALL SELECT COALESCE((SELECT last FROM spans ORDER BY first DESC LIMIT 1), 0) + 1, 9223372036854775807, '-infinity', 'infinity') a`

// endSpans notes between which times the events of a span happened, when its last one is there. Events come nearly in the order in
// which they happened, but those that a service could not deliver for a while, and those of a machine whose clock is wrong, do not.
// A span without its events (somebody removed them) can have any time.
func endSpans(ctx context.Context, tx pgx.Tx, before, head int64) error {
	if before/SpanSize == head/SpanSize {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO spans (first, last, earliest, latest)
SELECT n, n + $2 - 1, COALESCE(t.earliest, '-infinity'), COALESCE(t.latest, 'infinity')
FROM (SELECT COALESCE((SELECT last FROM spans ORDER BY first DESC LIMIT 1), 0) + 1 AS next) s
 CROSS JOIN LATERAL generate_series(s.next, least($1::bigint - $2 + 1, s.next + ($3 - 1) * $2), $2) n
 CROSS JOIN LATERAL (SELECT min(o.time) AS earliest, max(o.time) AS latest
  FROM (SELECT e.time FROM events e WHERE e.sequence BETWEEN n AND n + $2 - 1 OFFSET 0) o) t`, head, int64(SpanSize), int64(mostSpans))
	if err != nil {
		return fmt.Errorf("note the times of a span: %w", err)
	}
	return nil
}

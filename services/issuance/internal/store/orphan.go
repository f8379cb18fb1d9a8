package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Orphan is an order that the CA has and the journal does not know.
type Orphan struct {
	ID           string
	IssuerID     string
	Account      string
	CAKey        string
	CAReference  json.RawMessage
	OrderID      string // of the journal, that the CA says it was placed for
	CAState      string
	CommonName   string
	DNSNames     []string
	SerialNumber string
	Reason       string
	Message      string
	PlacedTime   time.Time
	CreateTime   time.Time
	Status       string
	Revision     int32
}

const orphanColumns = `o.id, o.issuer_id, o.account, o.ca_key, o.ca_reference, o.order_id, o.ca_state, o.common_name, o.dns_names,
 o.serial_number, o.reason, o.message, o.placed_time, o.create_time, o.status, o.revision`

func scanOrphan(row pgx.CollectableRow) (Orphan, error) {
	var o Orphan
	var placed *time.Time
	var ref []byte
	err := row.Scan(&o.ID, &o.IssuerID, &o.Account, &o.CAKey, &ref, &o.OrderID, &o.CAState, &o.CommonName, &o.DNSNames,
		&o.SerialNumber, &o.Reason, &o.Message, &placed, &o.CreateTime, &o.Status, &o.Revision)
	o.CAReference, o.PlacedTime = ref, timeOf(placed)
	return o, err
}

// UpsertOrphan stores an orphan, or what has changed of one that waits for a decision. One that was decided stays as it is; one
// that was only SEEN is OPEN when it was so before a time, or is not in doubt any more.
// It gives the id under which it is stored, or none when nothing has changed.
func UpsertOrphan(ctx context.Context, q Querier, o Orphan, seenBefore time.Time) (id string, err error) {
	err = q.QueryRow(ctx, `INSERT INTO orphans AS o (id, issuer_id, account, ca_key, ca_reference, order_id, ca_state, common_name,
 dns_names, serial_number, reason, message, placed_time, create_time, status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (account, ca_key) DO UPDATE SET ca_state = EXCLUDED.ca_state, ca_reference = EXCLUDED.ca_reference,
 serial_number = EXCLUDED.serial_number, reason = EXCLUDED.reason, message = EXCLUDED.message, status = 'OPEN', revision = o.revision + 1
WHERE (o.status IN ('OPEN', 'GONE') OR o.status = 'SEEN' AND (EXCLUDED.status = 'OPEN' OR o.create_time < $16)) AND (o.status, o.ca_state, o.serial_number, o.reason) IS DISTINCT FROM ('OPEN', EXCLUDED.ca_state, EXCLUDED.serial_number, EXCLUDED.reason)
RETURNING id`,
		o.ID, o.IssuerID, o.Account, o.CAKey, reference(o.CAReference), o.OrderID, o.CAState, o.CommonName, list(o.DNSNames),
		o.SerialNumber, o.Reason, o.Message, nullTime(o.PlacedTime), o.CreateTime, o.Status, seenBefore).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return one("store orphan", id, err)
}

// SettleOrphans ends orphans that the journal knows by now.
func SettleOrphans(ctx context.Context, q Querier, account string, keys []string) (int, error) {
	return changed(ctx, q, "settle orphans", `UPDATE orphans SET status = 'GONE', revision = revision + 1
 WHERE account = $1 AND ca_key = ANY($2) AND status IN ('SEEN', 'OPEN')`, account, keys)
}

// SettleKnown ends the orphans of an issuer that the journal accounts for by now, listed or not.
func SettleKnown(ctx context.Context, q Querier, issuerID string) (int, error) {
	return changed(ctx, q, "settle known orphans", `UPDATE orphans SET status = 'GONE', revision = revision + 1
 WHERE issuer_id = $1 AND status IN ('SEEN', 'OPEN') AND EXISTS (SELECT 1 FROM orders o WHERE o.issuer_id = orphans.issuer_id
 AND o.ca_key = orphans.ca_key AND o.ca_key <> '' AND o.status NOT IN ('FAILED', 'CANCELLED'))`, issuerID)
}

// DecideOrphan ends an orphan that waits for a decision; false when it does not.
func DecideOrphan(ctx context.Context, q Querier, id, status string) (bool, error) {
	n, err := changed(ctx, q, "decide orphan", `UPDATE orphans SET status = $2, revision = revision + 1 WHERE id = $1 AND status = 'OPEN'`, id, status)
	return n == 1, err
}

// GetOrphan reads one.
func GetOrphan(ctx context.Context, q Querier, id string) (Orphan, error) {
	rows, err := q.Query(ctx, `SELECT `+orphanColumns+` FROM orphans o WHERE o.id = $1`, id)
	if err != nil {
		return Orphan{}, fmt.Errorf("read orphan: %w", err)
	}
	o, err := pgx.CollectExactlyOneRow(rows, scanOrphan)
	return one("read orphan", o, err)
}

func (f OrderFilter) orphans() *where {
	w := newWhere(`o.status = 'OPEN'`)
	w.add(f.IssuerID != "", `o.issuer_id = $%d`, f.IssuerID)
	w.add(len(f.Statuses) > 0, `o.ca_state = ANY($%d)`, f.Statuses)
	w.add(!f.CreatedBefore.IsZero(), `o.create_time < $%d`, f.CreatedBefore)
	w.add(!f.CreatedAfter.IsZero(), `o.create_time > $%d`, f.CreatedAfter)
	if f.CertificateID != "" || f.JobID != "" {
		w.conditions = append(w.conditions, "FALSE") // an orphan has neither
	}
	return w
}

// ListOrphans reads one page more one row of those that wait for a decision.
func ListOrphans(ctx context.Context, q Querier, f OrderFilter) ([]Orphan, error) {
	sql, args, err := listOrphansSQL(f)
	if err != nil {
		return nil, err
	}
	return collect(ctx, q, "list orphans", scanOrphan, sql, args...)
}

func listOrphansSQL(f OrderFilter) (string, []any, error) {
	return f.orphans().page(`SELECT `+orphanColumns+` FROM orphans o`, f.Page)
}

// CountOrphans counts what the filter finds.
func CountOrphans(ctx context.Context, q Querier, f OrderFilter) (int32, error) {
	return f.orphans().count(ctx, q, "orphans o")
}

// KnownOrder is what the comparison with a CA's list needs of an order.
type KnownOrder struct {
	ID     string
	CAKey  string
	Status string
}

// KnownOrders reads the orders of a CA account or an issuer that have one of the keys, and those with one of the ids. (The
// account of an issuer is another one after its credentials were changed.)
func KnownOrders(ctx context.Context, q Querier, account, issuerID string, keys, ids []string) ([]KnownOrder, error) {
	return collect(ctx, q, "read orders that a CA lists", pgx.RowToStructByPos[KnownOrder],
		`SELECT id, ca_key, status FROM orders WHERE account = $1 AND ca_key <> '' AND ca_key = ANY($2)
UNION SELECT id, ca_key, status FROM orders WHERE issuer_id = $4 AND ca_key <> '' AND ca_key = ANY($2)
UNION SELECT id, ca_key, status FROM orders WHERE id = ANY($3)`, account, list(keys), list(ids), issuerID)
}

// LostNames are the DNS names of the orders of a CA account whose reply is being waited for, or was lost.
func LostNames(ctx context.Context, q Querier, account string) ([]string, error) {
	return collect(ctx, q, "read names of lost orders", pgx.RowTo[string],
		`SELECT DISTINCT unnest(array_append(dns_names, common_name)) FROM orders WHERE status IN ('SUBMITTING', 'UNKNOWN') AND account = $1`, account)
}

// OldestLost is when the oldest of them was submitted; zero: there is none.
func OldestLost(ctx context.Context, q Querier, account string) (time.Time, error) {
	var t *time.Time
	err := q.QueryRow(ctx, `SELECT min(create_time) FROM orders WHERE status IN ('SUBMITTING', 'UNKNOWN') AND account = $1`, account).Scan(&t)
	at, err := one("read oldest lost order", t, err)
	return timeOf(at), err
}

// BeginSweep takes the comparison of an issuer's orders for a while; false when another replica has it.
func BeginSweep(ctx context.Context, q Querier, issuerID string, leaseFor time.Duration) (bool, error) {
	n, err := changed(ctx, q, "begin search for orphans", `UPDATE issuers SET sweep_until = now() + $2::interval
 WHERE id = $1 AND (sweep_until IS NULL OR sweep_until <= now())`, issuerID, leaseFor)
	return n == 1, err
}

// EndSweep gives it back.
func EndSweep(ctx context.Context, q Querier, issuerID string) error {
	_, err := changed(ctx, q, "end search for orphans", `UPDATE issuers SET sweep_until = NULL WHERE id = $1`, issuerID)
	return err
}

// SweepTime is up to when an issuer's CA was compared with the journal; zero: never.
func SweepTime(ctx context.Context, q Querier, issuerID string) (time.Time, error) {
	var t *time.Time
	err := q.QueryRow(ctx, `SELECT sweep_time FROM issuers WHERE id = $1`, issuerID).Scan(&t)
	at, err := one("read sweep time", t, err)
	return timeOf(at), err
}

// SetSweepTime notes it.
func SetSweepTime(ctx context.Context, q Querier, issuerID string, t time.Time) error {
	_, err := changed(ctx, q, "note sweep time", `UPDATE issuers SET sweep_time = $2 WHERE id = $1`, issuerID, t)
	return err
}

package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/page"
)

// Issuer is a connection to a CA, without its secrets.
type Issuer struct {
	ID           string
	Name         string
	Type         string
	Config       json.RawMessage
	ConfigHash   string
	Enabled      bool
	Status       string
	LastTestTime time.Time
	LastError    string
	CreateTime   time.Time
	UpdateTime   time.Time
	DeleteTime   time.Time
	Revision     int32
	// MaxValidity is what the connector said when it was built; 0: no bound is known.
	MaxValidity time.Duration
	// PendingDeadline is how long an order may be pending; 0: as the connector says.
	PendingDeadline time.Duration
	// SecretNames are the secrets that are set.
	SecretNames []string
}

const issuerColumns = `i.id, i.name, i.type, i.config, i.config_hash, i.enabled, i.status, i.last_test_time, i.last_error,
 i.create_time, i.update_time, i.delete_time, i.revision, i.max_validity_seconds, i.pending_deadline_seconds,
 ARRAY(SELECT s.name FROM issuer_secrets s WHERE s.issuer_id = i.id ORDER BY s.name)`

func scanIssuer(row pgx.CollectableRow) (Issuer, error) {
	var i Issuer
	var tested, deleted *time.Time
	var config []byte
	var validity, pending int64
	err := row.Scan(&i.ID, &i.Name, &i.Type, &config, &i.ConfigHash, &i.Enabled, &i.Status, &tested, &i.LastError,
		&i.CreateTime, &i.UpdateTime, &deleted, &i.Revision, &validity, &pending, &i.SecretNames)
	i.Config, i.LastTestTime, i.DeleteTime = config, timeOf(tested), timeOf(deleted)
	i.MaxValidity, i.PendingDeadline = time.Duration(validity)*time.Second, time.Duration(pending)*time.Second
	return i, err
}

// InsertIssuer stores a new issuer; ErrExists when the id is taken, also by a deleted one.
func InsertIssuer(ctx context.Context, q Querier, i Issuer) error {
	_, err := q.Exec(ctx, `INSERT INTO issuers (id, name, type, config, config_hash, enabled, max_validity_seconds,
 pending_deadline_seconds, status, last_test_time, last_error) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, COALESCE(NULLIF($9, ''), 'UNTESTED'), $10, $11)`,
		i.ID, i.Name, i.Type, i.Config, i.ConfigHash, i.Enabled, seconds(i.MaxValidity), seconds(i.PendingDeadline), i.Status, nullTime(i.LastTestTime), i.LastError)
	if isUniqueViolation(err) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("store issuer: %w", err)
	}
	return nil
}

// GetIssuer reads one, deleted ones included.
func GetIssuer(ctx context.Context, q Querier, id string) (Issuer, error) {
	return oneIssuer(ctx, q, `SELECT `+issuerColumns+` FROM issuers i WHERE i.id = $1`, id)
}

// LockIssuer reads one for a change in the same transaction.
func LockIssuer(ctx context.Context, q Querier, id string) (Issuer, error) {
	return oneIssuer(ctx, q, `SELECT `+issuerColumns+` FROM issuers i WHERE i.id = $1 AND i.delete_time IS NULL FOR UPDATE OF i`, id)
}

func oneIssuer(ctx context.Context, q Querier, sql, id string) (Issuer, error) {
	rows, err := q.Query(ctx, sql, id)
	if err != nil {
		return Issuer{}, fmt.Errorf("read issuer: %w", err)
	}
	i, err := pgx.CollectExactlyOneRow(rows, scanIssuer)
	return one("read issuer", i, err)
}

// UpdateIssuer writes what an update may change and raises the revision; a test of other settings counts no more. The row
// was locked before.
func UpdateIssuer(ctx context.Context, q Querier, i Issuer) error {
	_, err := changed(ctx, q, "change issuer", `UPDATE issuers SET name = $2, config = $3, config_hash = $4, enabled = $5,
 max_validity_seconds = $6, pending_deadline_seconds = $7, update_time = now(), revision = revision + 1,
 status = CASE WHEN config_hash = $4 THEN status ELSE $8 END, last_error = CASE WHEN config_hash = $4 THEN last_error ELSE $9 END,
 last_test_time = CASE WHEN config_hash = $4 THEN last_test_time ELSE $10 END WHERE id = $1`,
		i.ID, i.Name, i.Config, i.ConfigHash, i.Enabled, seconds(i.MaxValidity), seconds(i.PendingDeadline),
		i.Status, i.LastError, nullTime(i.LastTestTime))
	return err
}

// RecordIssuerTest notes the outcome of a test of the settings that hash names, and what the connector said of itself. It
// is not an edit: the revision stays.
func RecordIssuerTest(ctx context.Context, q Querier, i Issuer) (bool, error) {
	n, err := changed(ctx, q, "record issuer test", `UPDATE issuers SET status = $3, last_test_time = $4, last_error = $5,
 max_validity_seconds = $6 WHERE id = $1 AND config_hash = $2 AND delete_time IS NULL`,
		i.ID, i.ConfigHash, i.Status, nullTime(i.LastTestTime), i.LastError, seconds(i.MaxValidity))
	return n == 1, err
}

// ReplaceMaterial moves an issuer from one hash of its settings to the next, for a change that certctl makes by itself. It
// is false when the settings are others already. It is no edit: the revision stays. The row is locked from here on, so
// that who writes the secrets after it is alone.
func ReplaceMaterial(ctx context.Context, q Querier, i Issuer, nextHash string) (bool, error) {
	n, err := changed(ctx, q, "replace CA material", `UPDATE issuers SET config_hash = $3, max_validity_seconds = $4
 WHERE id = $1 AND config_hash = $2`, i.ID, i.ConfigHash, nextHash, seconds(i.MaxValidity))
	return n == 1, err
}

// DeleteIssuer removes an issuer. One that orders refer to is only marked. The row was locked before.
func DeleteIssuer(ctx context.Context, q Querier, id string) error {
	n, err := changed(ctx, q, "delete issuer", `DELETE FROM issuers i WHERE i.id = $1
 AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.issuer_id = i.id)`, id)
	if err != nil || n == 1 {
		return err
	}
	_, err = changed(ctx, q, "mark issuer deleted", `UPDATE issuers SET delete_time = now(), enabled = false, update_time = now(),
 revision = revision + 1 WHERE id = $1`, id)
	return err
}

// CountOpenOrders counts the orders of an issuer that are not final.
func CountOpenOrders(ctx context.Context, q Querier, issuerID string) (int, error) {
	var n int
	err := q.QueryRow(ctx, `SELECT count(*) FROM orders WHERE issuer_id = $1 AND due_time IS NOT NULL`, issuerID).Scan(&n)
	return one("count open orders", n, err)
}

// ListIssuers reads one page more one row.
func ListIssuers(ctx context.Context, q Querier, f IssuerFilter) ([]Issuer, error) {
	w := newWhere(`i.delete_time IS NULL`)
	w.add(f.Type != "", `i.type = $%d`, f.Type)
	sql, args, err := w.page(`SELECT `+issuerColumns+` FROM issuers i`, f.Page)
	if err != nil {
		return nil, err
	}
	return collect(ctx, q, "list issuers", scanIssuer, sql, args...)
}

// CountIssuers counts what the filter finds.
func CountIssuers(ctx context.Context, q Querier, f IssuerFilter) (int32, error) {
	w := newWhere(`i.delete_time IS NULL`)
	w.add(f.Type != "", `i.type = $%d`, f.Type)
	return w.count(ctx, q, "issuers i")
}

// IssuerFilter says what to list.
type IssuerFilter struct {
	Type string
	Page Page
}

// Page is the place in a list and its order.
type Page struct {
	Order page.Order
	After page.Cursor
	Size  int
}

// IssuersOfTypes lists the issuers of some types, deleted ones that have issued anything included.
func IssuersOfTypes(ctx context.Context, q Querier, types []string) ([]Issuer, error) {
	return collect(ctx, q, "list issuers by type", scanIssuer, `SELECT `+issuerColumns+` FROM issuers i
 WHERE i.type = ANY($1) ORDER BY i.id`, types)
}

// GetSecrets reads the sealed secrets of an issuer by name.
func GetSecrets(ctx context.Context, q Querier, issuerID string) (map[string][]byte, error) {
	rows, err := q.Query(ctx, `SELECT name, sealed FROM issuer_secrets WHERE issuer_id = $1`, issuerID)
	if err != nil {
		return nil, fmt.Errorf("read issuer secrets: %w", err)
	}
	out := map[string][]byte{}
	var name string
	var sealed []byte
	_, err = pgx.ForEachRow(rows, []any{&name, &sealed}, func() error {
		out[name] = append([]byte(nil), sealed...)
		return nil
	})
	return one("read issuer secrets", out, err)
}

// SealedSecret is one secret of an issuer as it is stored.
type SealedSecret struct {
	IssuerID string
	Name     string
	Sealed   []byte
	// Deleted tells whether the issuer is out of sight. What it issued can still be revoked.
	Deleted bool
}

// ListSecrets reads the sealed secrets of all issuers after one, in the order of the primary key.
func ListSecrets(ctx context.Context, q Querier, after SealedSecret, limit int) ([]SealedSecret, error) {
	return collect(ctx, q, "list issuer secrets", pgx.RowToStructByPos[SealedSecret], `SELECT s.issuer_id, s.name, s.sealed, i.delete_time IS NOT NULL
 FROM issuer_secrets s JOIN issuers i ON i.id = s.issuer_id WHERE (s.issuer_id, s.name) > ($1, $2) ORDER BY s.issuer_id, s.name LIMIT $3`, after.IssuerID, after.Name, limit)
}

// ReplaceSecret stores the same secret sealed anew; false when it is another one by now.
func ReplaceSecret(ctx context.Context, q Querier, s SealedSecret, sealed []byte) (bool, error) {
	n, err := changed(ctx, q, "reseal issuer secret", `UPDATE issuer_secrets SET sealed = $4 WHERE issuer_id = $1 AND name = $2 AND sealed = $3`,
		s.IssuerID, s.Name, s.Sealed, sealed)
	return n == 1, err
}

// PutSecret stores one sealed secret.
func PutSecret(ctx context.Context, q Querier, issuerID, name string, sealed []byte) error {
	_, err := changed(ctx, q, "store issuer secret", `INSERT INTO issuer_secrets (issuer_id, name, sealed) VALUES ($1, $2, $3)
 ON CONFLICT (issuer_id, name) DO UPDATE SET sealed = excluded.sealed`, issuerID, name, sealed)
	return err
}

// KeepSecrets drops all secrets of an issuer except the named ones.
func KeepSecrets(ctx context.Context, q Querier, issuerID string, names []string) error {
	_, err := changed(ctx, q, "drop issuer secrets", `DELETE FROM issuer_secrets WHERE issuer_id = $1 AND name <> ALL($2)`,
		issuerID, list(names))
	return err
}

package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/page"
)

const policyColumns = `id, name, renew_at_fraction, renew_before_seconds, automatic, max_attempts, alert_days, freeze_windows, create_time,
 update_time, revision`

func scanPolicy(row pgx.CollectableRow) (*Policy, error) {
	p := &Policy{}
	var fraction *float64
	var before *int64
	var windows []byte
	err := row.Scan(&p.ID, &p.Name, &fraction, &before, &p.Automatic, &p.MaxAttempts, &p.AlertDays, &windows, &p.CreateTime,
		&p.UpdateTime, &p.Revision)
	if err != nil {
		return nil, err
	}
	if fraction != nil {
		p.RenewAtFraction = *fraction
	}
	if before != nil {
		p.RenewBefore = time.Duration(*before) * time.Second
	}
	if err := json.Unmarshal(windows, &p.FreezeWindows); err != nil {
		return nil, fmt.Errorf("read freeze windows: %w", err)
	}
	p.CreateTime, p.UpdateTime = p.CreateTime.UTC(), p.UpdateTime.UTC()
	return p, nil
}

func (q Queries) policies(ctx context.Context, where string, args ...any) ([]*Policy, error) {
	rows, err := q.db.Query(ctx, `SELECT `+policyColumns+` FROM policies WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	out, err := pgx.CollectRows(rows, scanPolicy)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	return out, nil
}

func one[T any](rows []T, err error) (T, error) {
	var none T
	if err != nil {
		return none, err
	}
	if len(rows) == 0 {
		return none, ErrNotFound
	}
	return rows[0], nil
}

// Policy reads one; ErrNotFound.
func (q Queries) Policy(ctx context.Context, id string) (*Policy, error) {
	return one(q.policies(ctx, `id = $1`, id))
}

// PoliciesByID reads those of the ids that exist.
func (q Queries) PoliciesByID(ctx context.Context, ids []string) ([]*Policy, error) {
	return q.policies(ctx, `id = ANY($1) ORDER BY id`, ids)
}

// Policy is Policy of the queries; a transaction that has locked something with Hold asks once.
func (t *Tx) Policy(ctx context.Context, id string) (*Policy, error) {
	return one(t.PoliciesByID(ctx, []string{id}))
}

// PoliciesByID is PoliciesByID of the queries; see Policy.
func (t *Tx) PoliciesByID(ctx context.Context, ids []string) ([]*Policy, error) {
	if t.held == nil {
		return t.Queries.PoliciesByID(ctx, ids)
	}
	known := t.held.policies
	unknown := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { _, ok := known[id]; return ok })
	if len(unknown) > 0 {
		found, err := t.Queries.PoliciesByID(ctx, unknown)
		if err != nil {
			return nil, err
		}
		for _, id := range unknown {
			known[id] = nil
		}
		for _, p := range found {
			known[p.ID] = p
		}
	}
	out := make([]*Policy, 0, len(ids))
	for _, id := range ids {
		if p := known[id]; p != nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// LockPolicy reads one and keeps it from changing until the transaction ends; ErrNotFound.
func (t *Tx) LockPolicy(ctx context.Context, id string) (*Policy, error) {
	return one(t.policies(ctx, `id = $1 FOR UPDATE`, id))
}

// List is a page of a collection.
type List struct {
	Order page.Order
	After page.Cursor
	Size  int
	Total bool
}

// ListPolicies reads Size+1 policies, and their number when Total asks for it.
func (q Queries) ListPolicies(ctx context.Context, l List) ([]*Policy, int, error) {
	where, args, err := l.Order.After(l.After, 1)
	if err != nil {
		return nil, 0, err
	}
	limit := fmt.Sprintf(" ORDER BY %s LIMIT $%d", l.Order.SQL(), len(args)+1)
	out, err := q.policies(ctx, where+limit, append(args, l.Size+1)...)
	if err != nil || !l.Total {
		return out, 0, err
	}
	total := 0
	if err := q.db.QueryRow(ctx, `SELECT count(*) FROM policies`).Scan(&total); err != nil {
		return nil, 0, fmt.Errorf("count policies: %w", err)
	}
	return out, total, nil
}

func (p *Policy) args() ([]any, error) {
	windows := p.FreezeWindows
	if windows == nil {
		windows = []FreezeWindow{}
	}
	b, err := json.Marshal(windows)
	if err != nil {
		return nil, fmt.Errorf("encode freeze windows: %w", err)
	}
	days := p.AlertDays
	if days == nil {
		days = []int32{}
	}
	var fraction *float64
	if p.RenewAtFraction != 0 {
		fraction = &p.RenewAtFraction
	}
	var before *int64
	if s := int64(p.RenewBefore / time.Second); s != 0 {
		before = &s
	}
	return []any{p.ID, p.Name, fraction, before, p.Automatic, p.MaxAttempts, days, b, p.UpdateTime, p.Revision}, nil
}

// InsertPolicy stores a new policy; ErrExists.
func (t *Tx) InsertPolicy(ctx context.Context, p *Policy) error {
	args, err := p.args()
	if err != nil {
		return err
	}
	tag, err := t.tx.Exec(ctx, `INSERT INTO policies (id, name, renew_at_fraction, renew_before_seconds, automatic, max_attempts, alert_days,
 freeze_windows, update_time, revision, create_time) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9) ON CONFLICT (id) DO NOTHING`, args...)
	if err != nil {
		return fmt.Errorf("store policy: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrExists
	}
	return nil
}

// UpdatePolicy stores a policy whose revision was raised by one; ErrChanged.
func (t *Tx) UpdatePolicy(ctx context.Context, p *Policy) error {
	args, err := p.args()
	if err != nil {
		return err
	}
	tag, err := t.tx.Exec(ctx, `UPDATE policies SET name = $2, renew_at_fraction = $3, renew_before_seconds = $4, automatic = $5, max_attempts = $6,
 alert_days = $7, freeze_windows = $8, update_time = $9, revision = $10 WHERE id = $1 AND revision = $10 - 1`, args...)
	if err != nil {
		return fmt.Errorf("store policy: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrChanged
	}
	return nil
}

// DeletePolicy removes a policy; ErrNotFound.
func (t *Tx) DeletePolicy(ctx context.Context, id string) error {
	tag, err := t.tx.Exec(ctx, `DELETE FROM policies WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("delete policy: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}

// CountPolicyPlans counts the certificates that follow a policy.
func (q Queries) CountPolicyPlans(ctx context.Context, id string) (int, error) {
	n := 0
	err := q.db.QueryRow(ctx, `SELECT count(*) FROM plans WHERE policy_id = $1 AND state <> 'ENDED'`, id).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count plans: %w", err)
	}
	return n, nil
}

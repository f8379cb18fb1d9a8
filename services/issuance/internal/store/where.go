package store

import (
	"context"
	"fmt"
	"strings"
)

// where collects conditions with numbered parameters.
type where struct {
	conditions []string
	args       []any
}

func newWhere(always ...string) *where { return &where{conditions: always} }

// add takes a condition with one parameter if the filter is given.
func (w *where) add(given bool, condition string, arg any) {
	if !given {
		return
	}
	w.args = append(w.args, arg)
	w.conditions = append(w.conditions, fmt.Sprintf(condition, len(w.args)))
}

func (w *where) sql() string {
	if len(w.conditions) == 0 {
		return "TRUE"
	}
	return strings.Join(w.conditions, " AND ")
}

// page completes a list query; it reads one row more than the page has, so that the end can be told.
func (w *where) page(selectFrom string, p Page) (string, []any, error) {
	after, args, err := p.Order.After(p.After, len(w.args)+1)
	if err != nil {
		return "", nil, err
	}
	all := append(append([]any{}, w.args...), args...)
	all = append(all, p.Size+1)
	sql := selectFrom + " WHERE " + w.sql() + " AND " + after + " ORDER BY " + p.Order.SQL() + fmt.Sprintf(" LIMIT $%d", len(all))
	return sql, all, nil
}

func (w *where) count(ctx context.Context, q Querier, from string) (int32, error) {
	var n int32
	err := q.QueryRow(ctx, `SELECT count(*) FROM `+from+` WHERE `+w.sql(), w.args...).Scan(&n)
	return one("count "+from, n, err)
}

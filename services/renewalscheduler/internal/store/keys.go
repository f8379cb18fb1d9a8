package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const keyColumns = `job_id, agent_id, state, task_id, csr_pem, order_id, version, error_reason, error_message, permanent, keep_csr,
 order_request`

func scanKey(row pgx.CollectableRow) (*Key, error) {
	k := &Key{}
	var task *uuid.UUID
	var order *string
	err := row.Scan(&k.JobID, &k.AgentID, &k.State, &task, &k.CsrPEM, &order, &k.Version, &k.Error.Reason, &k.Error.Message, &k.Permanent, &k.KeepCSR,
		&k.OrderRequest)
	if task != nil {
		k.TaskID = task.String()
	}
	k.OrderID = goText(order)
	return k, err
}

func (q Queries) keys(ctx context.Context, where string, args ...any) ([]*Key, error) {
	rows, err := q.db.Query(ctx, `SELECT `+keyColumns+` FROM job_keys WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read job keys: %w", err)
	}
	out, err := pgx.CollectRows(rows, scanKey)
	if err != nil {
		return nil, fmt.Errorf("read job keys: %w", err)
	}
	return out, nil
}

// Keys reads the keys of a job.
func (q Queries) Keys(ctx context.Context, jobID string) ([]*Key, error) {
	return q.keys(ctx, `job_id = $1 ORDER BY agent_id`, jobID)
}

// KeysOf reads the keys of several jobs, by job.
func (q Queries) KeysOf(ctx context.Context, jobs []*Job) (map[string][]*Key, error) {
	ids := make([]string, 0, len(jobs))
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	keys, err := q.keys(ctx, `job_id = ANY($1) ORDER BY job_id, agent_id`, ids)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]*Key, len(jobs))
	for _, k := range keys {
		out[k.JobID] = append(out[k.JobID], k)
	}
	return out, nil
}

// KeyByTask finds the key that a task is for; ErrNotFound.
func (q Queries) KeyByTask(ctx context.Context, taskID string) (*Key, error) {
	id, err := uuid.Parse(taskID)
	if err != nil {
		return nil, ErrNotFound // an id that is none belongs to no task
	}
	return one(q.keys(ctx, `task_id = $1`, id))
}

// KeyByOrder finds the key that an order is for; ErrNotFound.
func (q Queries) KeyByOrder(ctx context.Context, orderID string) (*Key, error) {
	return one(q.keys(ctx, `order_id = $1`, orderID))
}

// OrdersWithKey tells which of the orders are for keys of jobs.
func (q Queries) OrdersWithKey(ctx context.Context, orderIDs []string) ([]string, error) {
	rows, err := q.db.Query(ctx, `SELECT order_id FROM job_keys WHERE order_id = ANY($1)`, orderIDs)
	if err != nil {
		return nil, fmt.Errorf("look for keys of orders: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for keys of orders: %w", err)
	}
	return ids, nil
}

// AddKeys adds keys to a job; those that it has stay as they are.
func (t *Tx) AddKeys(ctx context.Context, keys ...*Key) error {
	for _, k := range keys {
		_, err := t.tx.Exec(ctx, `INSERT INTO job_keys (job_id, agent_id, state, csr_pem) VALUES ($1, $2, $3, $4)
 ON CONFLICT (job_id, agent_id) DO NOTHING`, k.JobID, k.AgentID, k.State, k.CsrPEM)
		if err != nil {
			return fmt.Errorf("store job key: %w", err)
		}
	}
	return nil
}

// SaveKey stores a key of a locked job.
func (t *Tx) SaveKey(ctx context.Context, k *Key) error {
	task, err := sqlUUID(k.TaskID)
	if err != nil {
		return err
	}
	tag, err := t.tx.Exec(ctx, `UPDATE job_keys SET state = $3, task_id = $4, csr_pem = $5, order_id = $6, version = $7, error_reason = $8,
 error_message = $9, permanent = $10, keep_csr = $11, order_request = $12 WHERE job_id = $1 AND agent_id = $2`,
		k.JobID, k.AgentID, k.State, task, k.CsrPEM, sqlText(k.OrderID), k.Version, k.Error.Reason, k.Error.Message, k.Permanent, k.KeepCSR,
		k.OrderRequest)
	if err != nil {
		return fmt.Errorf("store job key: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}

// DeleteKey takes a key off a locked job.
func (t *Tx) DeleteKey(ctx context.Context, k *Key) error {
	if _, err := t.tx.Exec(ctx, `DELETE FROM job_keys WHERE job_id = $1 AND agent_id = $2`, k.JobID, k.AgentID); err != nil {
		return fmt.Errorf("delete job key: %w", err)
	}
	return nil
}

package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/pg"
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

// KeysShown reads of the keys of several jobs what users are shown of a key, by job: neither its CSR nor its order's request, which
// are most of a row.
func (q Queries) KeysShown(ctx context.Context, jobs []*Job) (map[string][]*Key, error) {
	ids := make([]string, 0, len(jobs))
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	// They are in a subquery so that Postgres plans the statement once: it would plan anew for an array whose length it can see.
	rows, err := q.db.Query(ctx, `SELECT job_id, agent_id, state, COALESCE(order_id, '') AS order_id, version, error_reason, error_message
 FROM job_keys WHERE job_id = ANY((SELECT $1::text[])::text[]) ORDER BY job_id, agent_id`, ids)
	if err != nil {
		return nil, fmt.Errorf("read job keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pg.RowTo(func(r *pg.Columns) *Key {
		return &Key{
			JobID: r.Text(), AgentID: r.Text(), State: KeyState(r.Text()), OrderID: r.Text(), Version: r.Int32(),
			Error: Problem{Reason: r.Text(), Message: r.Text()},
		}
	}))
	if err != nil {
		return nil, fmt.Errorf("read job keys: %w", err)
	}
	out := make(map[string][]*Key, len(jobs))
	for _, k := range keys {
		out[k.JobID] = append(out[k.JobID], k)
	}
	return out, nil
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

// Keys is Keys of the queries.
func (t *Tx) Keys(ctx context.Context, jobID string) ([]*Key, error) {
	if j := t.heldJob(jobID); j != nil {
		return j.sortedKeys(), nil
	}
	return t.Queries.Keys(ctx, jobID)
}

// AddKeys adds keys to a job; those that it has stay as they are.
func (t *Tx) AddKeys(ctx context.Context, keys ...*Key) error {
	var others []*Key
	for _, k := range keys {
		if j := t.heldJob(k.JobID); j != nil {
			j.addKey(k)
			continue
		}
		others = append(others, k)
	}
	return t.insertKeys(ctx, others)
}

// SaveKey stores a key of a locked job.
func (t *Tx) SaveKey(ctx context.Context, k *Key) error {
	if j := t.heldJob(k.JobID); j != nil {
		return j.saveKey(k)
	}
	return t.updateKeys(ctx, []*Key{k})
}

// DeleteKey takes a key off a locked job.
func (t *Tx) DeleteKey(ctx context.Context, k *Key) error {
	if j := t.heldJob(k.JobID); j != nil {
		j.dropKey(k)
		return nil
	}
	return t.deleteKeys(ctx, []*Key{k})
}

// keyColumnar are the arrays of the statements about keys.
type keyColumnar struct {
	jobs, agents, states, csrs, reasons, messages []string
	tasks                                         []*uuid.UUID
	orders                                        []*string
	versions                                      []int32
	permanent, keep                               []bool
	requests                                      [][]byte
}

func keyArrays(keys []*Key) (keyColumnar, error) {
	var c keyColumnar
	for _, k := range keys {
		task, err := sqlUUID(k.TaskID)
		if err != nil {
			return c, err
		}
		c.jobs, c.agents, c.states, c.csrs = append(c.jobs, k.JobID), append(c.agents, k.AgentID), append(c.states, string(k.State)), append(c.csrs, k.CsrPEM)
		c.tasks, c.orders, c.versions = append(c.tasks, task), append(c.orders, sqlText(k.OrderID)), append(c.versions, k.Version)
		c.reasons, c.messages = append(c.reasons, k.Error.Reason), append(c.messages, k.Error.Message)
		c.permanent, c.keep, c.requests = append(c.permanent, k.Permanent), append(c.keep, k.KeepCSR), append(c.requests, k.OrderRequest)
	}
	return c, nil
}

const keyRows = `unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::text[], $10::boolean[],
 $11::boolean[], $12::bytea[]) AS e (job_id, agent_id, state, task_id, csr_pem, order_id, version, error_reason, error_message, permanent, keep_csr,
 order_request)`

func (c keyColumnar) args() []any {
	return []any{c.jobs, c.agents, c.states, c.tasks, c.csrs, c.orders, c.versions, c.reasons, c.messages, c.permanent, c.keep, c.requests}
}

func (t *Tx) insertKeys(ctx context.Context, keys []*Key) error {
	if len(keys) == 0 {
		return nil
	}
	c, err := keyArrays(keys)
	if err != nil {
		return err
	}
	_, err = t.db.Exec(ctx, `INSERT INTO job_keys (`+keyColumns+`) SELECT `+keyColumns+` FROM `+keyRows+` ON CONFLICT (job_id, agent_id) DO NOTHING`, c.args()...)
	if err != nil {
		return fmt.Errorf("store job keys: %w", err)
	}
	return nil
}

func (t *Tx) updateKeys(ctx context.Context, keys []*Key) error {
	if len(keys) == 0 {
		return nil
	}
	c, err := keyArrays(keys)
	if err != nil {
		return err
	}
	tag, err := t.db.Exec(ctx, `UPDATE job_keys k SET state = e.state, task_id = e.task_id, csr_pem = e.csr_pem, order_id = e.order_id, version = e.version,
 error_reason = e.error_reason, error_message = e.error_message, permanent = e.permanent, keep_csr = e.keep_csr, order_request = e.order_request
 FROM `+keyRows+` WHERE k.job_id = e.job_id AND k.agent_id = e.agent_id`, c.args()...)
	if err != nil {
		return fmt.Errorf("store job keys: %w", err)
	}
	if tag.RowsAffected() < int64(len(keys)) {
		return ErrNotFound
	}
	return nil
}

func (t *Tx) deleteKeys(ctx context.Context, keys []*Key) error {
	if len(keys) == 0 {
		return nil
	}
	var jobs, agents []string
	for _, k := range keys {
		jobs, agents = append(jobs, k.JobID), append(agents, k.AgentID)
	}
	_, err := t.db.Exec(ctx, `DELETE FROM job_keys k USING unnest($1::text[], $2::text[]) AS e (job_id, agent_id)
 WHERE k.job_id = e.job_id AND k.agent_id = e.agent_id`, jobs, agents)
	if err != nil {
		return fmt.Errorf("delete job keys: %w", err)
	}
	return nil
}

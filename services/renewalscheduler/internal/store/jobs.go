package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/search"
)

const jobColumns = `id, type, state, certificate_id, target_id, retry_of, attempt, max_attempts, error_reason, error_message, requested_by, askers,
 approved_by, approval_subject, approval_comment, create_time, start_time, end_time, deadline_time, due_time, revision`

func scanJob(row pgx.CollectableRow) (*Job, error) {
	j := &Job{}
	var start, end, deadline, due *time.Time
	err := row.Scan(&j.ID, &j.Type, &j.State, &j.CertificateID, &j.TargetID, &j.RetryOf, &j.Attempt, &j.MaxAttempts, &j.Error.Reason,
		&j.Error.Message, &j.RequestedBy, &j.Askers, &j.ApprovedBy, &j.ApprovalSubject, &j.ApprovalComment, &j.CreateTime, &start, &end,
		&deadline, &due, &j.Revision)
	j.CreateTime = j.CreateTime.UTC()
	j.StartTime, j.EndTime, j.DeadlineTime, j.DueTime = goTime(start), goTime(end), goTime(deadline), goTime(due)
	return j, err
}

func (q Queries) selectJobs(ctx context.Context, where string, args ...any) ([]*Job, error) {
	rows, err := q.db.Query(ctx, `SELECT `+jobColumns+` FROM jobs WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	out, err := pgx.CollectRows(rows, scanJob)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	return out, nil
}

// Job reads one; ErrNotFound.
func (q Queries) Job(ctx context.Context, id string) (*Job, error) {
	return one(q.selectJobs(ctx, `id = $1`, id))
}

// LockJob reads one and keeps it from changing until the transaction ends; ErrNotFound.
func (t *Tx) LockJob(ctx context.Context, id string) (*Job, error) {
	return one(t.selectJobs(ctx, `id = $1 FOR UPDATE`, id))
}

// OpenJob reads the open ISSUE or RENEW job of a certificate; ErrNotFound.
func (q Queries) OpenJob(ctx context.Context, certificateID string) (*Job, error) {
	return one(q.selectJobs(ctx, `certificate_id = $1 AND type IN ('ISSUE', 'RENEW') AND end_time IS NULL`, certificateID))
}

// WithOpenJob tells which of the certificates have an open ISSUE or RENEW job.
func (q Queries) WithOpenJob(ctx context.Context, certificateIDs []string) ([]string, error) {
	rows, err := q.db.Query(ctx, `SELECT certificate_id FROM jobs WHERE certificate_id = ANY($1) AND type IN ('ISSUE', 'RENEW') AND end_time IS NULL`, certificateIDs)
	if err != nil {
		return nil, fmt.Errorf("look for open jobs: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for open jobs: %w", err)
	}
	return ids, nil
}

// LastJob reads the newest final ISSUE or RENEW job of a certificate; ErrNotFound.
func (q Queries) LastJob(ctx context.Context, certificateID string) (*Job, error) {
	return one(q.selectJobs(ctx, `certificate_id = $1 AND type IN ('ISSUE', 'RENEW') AND end_time IS NOT NULL
 ORDER BY create_time DESC, id DESC LIMIT 1`, certificateID))
}

// OpenDeployJob reads the open DEPLOY job of a certificate and a target; ErrNotFound.
func (q Queries) OpenDeployJob(ctx context.Context, certificateID, targetID string) (*Job, error) {
	return one(q.selectJobs(ctx, `certificate_id = $1 AND target_id = $2 AND type = 'DEPLOY' AND end_time IS NULL`, certificateID, targetID))
}

// OpenJobs reads and locks all open jobs of a certificate.
func (t *Tx) OpenJobs(ctx context.Context, certificateID string) ([]*Job, error) {
	return t.selectJobs(ctx, `certificate_id = $1 AND end_time IS NULL ORDER BY id FOR UPDATE`, certificateID)
}

// Overdue reads at most limit open jobs whose deadline has passed, oldest first.
func (q Queries) Overdue(ctx context.Context, now time.Time, limit int) ([]*Job, error) {
	return q.selectJobs(ctx, `end_time IS NULL AND deadline_time <= $1 ORDER BY deadline_time, id LIMIT $2`, now, limit)
}

// InsertJob stores a new job; ErrOpen when an open one is in the way.
func (t *Tx) InsertJob(ctx context.Context, j *Job) error {
	// Of the two partial unique indexes at most one speaks of a job, so that DO NOTHING means just that.
	tag, err := t.tx.Exec(ctx, `INSERT INTO jobs (id, type, state, certificate_id, target_id, retry_of, max_attempts, requested_by, askers, create_time,
 deadline_time, due_time) VALUES ($1, $2, 'PENDING', $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING`,
		j.ID, j.Type, j.CertificateID, j.TargetID, j.RetryOf, j.MaxAttempts, j.RequestedBy, j.Askers, j.CreateTime, j.DeadlineTime, j.DueTime)
	if err != nil {
		return fmt.Errorf("store job: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrOpen
	}
	return nil
}

// Move is a change of a job's state: compare-and-set on the states it may start from and on the revision.
type Move struct {
	From []JobState
	// Job has the new state and values; its Revision is the one it had.
	Job *Job
}

// MoveJob makes the change and raises the revision; ErrChanged. A final job gives its lease back.
func (t *Tx) MoveJob(ctx context.Context, m Move) error {
	j := m.Job
	from := make([]string, 0, len(m.From))
	for _, s := range m.From {
		from = append(from, string(s))
	}
	err := t.tx.QueryRow(ctx, `UPDATE jobs SET state = $4, attempt = $5, error_reason = $6, error_message = $7, askers = $8, approved_by = $9,
 approval_subject = $10, approval_comment = $11, start_time = $12, end_time = $13, deadline_time = $14, due_time = $15, revision = revision + 1,
 lease_id = CASE WHEN $13::timestamptz IS NULL THEN lease_id END, lease_until = CASE WHEN $13::timestamptz IS NULL THEN lease_until END
 WHERE id = $1 AND state = ANY($2::text[]) AND revision = $3 RETURNING revision`,
		j.ID, from, j.Revision, j.State, j.Attempt, j.Error.Reason, j.Error.Message, j.Askers, j.ApprovedBy, j.ApprovalSubject, j.ApprovalComment,
		sqlTime(j.StartTime), sqlTime(j.EndTime), sqlTime(j.DeadlineTime), sqlTime(j.DueTime)).Scan(&j.Revision)
	if err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrChanged
		}
		return fmt.Errorf("move job to %s: %w", j.State, err)
	}
	return nil
}

// SaveJob stores values of an open job whose state stays; ErrChanged.
func (t *Tx) SaveJob(ctx context.Context, j *Job) error {
	return t.MoveJob(ctx, Move{From: []JobState{j.State}, Job: j})
}

// Release is how a worker gives a job back.
type Release struct {
	Lease lease.Lease
	// Revision is the last one that the worker saw. When the job has changed since, it stays due as that change says.
	Revision int32
	Next     time.Time
	// Worked begins the count of attempts anew.
	Worked bool
}

// ReleaseJob gives an open job back. A job that ended, or that another worker has, stays as it is.
func (q Queries) ReleaseJob(ctx context.Context, r Release) error {
	_, err := q.db.Exec(ctx, `UPDATE jobs SET lease_id = NULL, lease_until = NULL, attempts = CASE WHEN $5 THEN 0 ELSE attempts END,
 due_time = CASE WHEN revision = $3 THEN $4 ELSE due_time END WHERE id = $1 AND lease_id = $2`,
		r.Lease.ID, r.Lease.LeaseID, r.Revision, r.Next, r.Worked)
	if err != nil {
		return fmt.Errorf("give job back: %w", err)
	}
	return nil
}

// JobFilter selects jobs; empty fields select all.
type JobFilter struct {
	States        []string
	Types         []string
	CertificateID string
	AgentID       string
	TargetID      string
}

func (f JobFilter) filter() search.Filter {
	var w search.Filter
	w.Among("state", f.States)
	w.Among("type", f.Types)
	w.Equal("certificate_id", f.CertificateID)
	w.Equal("target_id", f.TargetID)
	if f.AgentID != "" {
		w.Few("id IN (SELECT job_id FROM job_keys WHERE agent_id = ?)", f.AgentID)
	}
	return w
}

func jobTable() search.Table {
	return search.Table{
		Columns: jobColumns, From: "jobs j", Few: []string{"certificate_id", "target_id"},
		Leads: map[string][]string{"create_time": {"certificate_id", "target_id", "state", "type"}},
	}
}

// ListJobs reads Size+1 jobs, and their number when Total asks for it.
func (q Queries) ListJobs(ctx context.Context, f JobFilter, l List) ([]*Job, int, error) {
	filter := f.filter()
	total := 0
	if l.Total {
		if err := q.db.QueryRow(ctx, `SELECT count(*) FROM jobs WHERE `+filter.SQL(), filter.Args()...).Scan(&total); err != nil {
			return nil, 0, fmt.Errorf("count jobs: %w", err)
		}
	}
	out, err := search.Find(ctx, q.db, search.Search{Table: jobTable(), Filter: filter, Order: l.Order, After: l.After, Limit: l.Size + 1}, scanJob)
	if err != nil {
		return nil, 0, fmt.Errorf("read jobs: %w", err)
	}
	return out, total, nil
}

// JobCounts are numbers of rows.
type JobCounts struct {
	// ByState has no state that no job has.
	ByState map[string]int
	// Stuck is what Stuck counts.
	Stuck int
}

// CountJobs counts jobs by state, and what is stuck since before a time, in one statement.
func (q Queries) CountJobs(ctx context.Context, before time.Time) (JobCounts, error) {
	rows, err := q.db.Query(ctx, `SELECT state, count(*)::integer FROM jobs GROUP BY state UNION ALL SELECT '', `+stuck+`::integer`, before)
	if err != nil {
		return JobCounts{}, fmt.Errorf("count jobs: %w", err)
	}
	out := JobCounts{ByState: map[string]int{}}
	var state string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		if state == "" {
			out.Stuck = n
		} else {
			out.ByState[state] = n
		}
		return nil
	})
	if err != nil {
		return JobCounts{}, fmt.Errorf("count jobs: %w", err)
	}
	return out, nil
}

// stuck counts what Stuck does, for the time $1.
const stuck = `((SELECT count(*) FROM jobs WHERE end_time IS NULL AND (due_time IS NULL OR deadline_time IS NULL OR deadline_time < $1
   OR (state <> 'AWAITING_APPROVAL' AND due_time < $1 AND (lease_until IS NULL OR lease_until < $1))))
 + (SELECT count(*) FROM plans p WHERE state = 'WORKING' AND NOT EXISTS (
   SELECT 1 FROM jobs WHERE certificate_id = p.id AND type IN ('ISSUE', 'RENEW') AND end_time IS NULL))
 + (SELECT count(*) FROM plans WHERE state IN ('SCHEDULED', 'RETRYING') AND due_time < $1))`

// Stuck counts what nothing will ever move: open jobs that nobody works on, long after they were due or dead, plans that
// wait for a job that is not open, and plans long overdue.
func (q Queries) Stuck(ctx context.Context, before time.Time) (int, error) {
	n := 0
	if err := q.db.QueryRow(ctx, `SELECT `+stuck, before).Scan(&n); err != nil {
		return 0, fmt.Errorf("count stuck rows: %w", err)
	}
	return n, nil
}

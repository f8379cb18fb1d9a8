package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/search"
)

const jobColumns = `id, type, state, certificate_id, target_id, retry_of, attempt, max_attempts, error_reason, error_message, requested_by, askers,
 approved_by, approval_subject, approval_comment, create_time, start_time, end_time, deadline_time, due_time, revision`

func scanJob(row pgx.CollectableRow) (*Job, error) {
	return pg.RowTo(readJob)(row)
}

// readJob reads jobColumns.
func readJob(r *pg.Columns) *Job {
	return &Job{
		ID: r.Text(), Type: JobType(r.Text()), State: JobState(r.Text()), CertificateID: r.Text(), TargetID: r.Text(), RetryOf: r.Text(),
		Attempt: int(r.Int32()), MaxAttempts: int(r.Int32()), Error: Problem{Reason: r.Text(), Message: r.Text()}, RequestedBy: r.Text(),
		Askers: r.Texts(), ApprovedBy: r.Text(), ApprovalSubject: r.Text(), ApprovalComment: r.Text(), CreateTime: r.Time().UTC(),
		StartTime: goTime(r.Moment()), EndTime: goTime(r.Moment()), DeadlineTime: goTime(r.Moment()), DueTime: goTime(r.Moment()),
		Revision: r.Int32(),
	}
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
	if row := t.heldJob(id); row != nil {
		j := row.Job
		return &j, nil
	}
	return one(t.selectJobs(ctx, `id = $1 FOR UPDATE`, id))
}

// OpenJob reads the open ISSUE or RENEW job of a certificate; ErrNotFound.
func (q Queries) OpenJob(ctx context.Context, certificateID string) (*Job, error) {
	return one(q.selectJobs(ctx, `certificate_id = $1 AND type IN ('ISSUE', 'RENEW') AND end_time IS NULL`, certificateID))
}

// OpenJob is OpenJob of the queries.
func (t *Tx) OpenJob(ctx context.Context, certificateID string) (*Job, error) {
	if t.holds(certificateID) {
		return one(t.held.openJobs(certificateID, (*Job).MakesKeys), nil)
	}
	return t.Queries.OpenJob(ctx, certificateID)
}

// WithOpenJob is WithOpenJob of the queries.
func (t *Tx) WithOpenJob(ctx context.Context, certificateIDs []string) ([]string, error) {
	if !t.holds(certificateIDs...) {
		return t.Queries.WithOpenJob(ctx, certificateIDs)
	}
	var out []string
	for _, id := range certificateIDs {
		if len(t.held.openJobs(id, (*Job).MakesKeys)) > 0 {
			out = append(out, id)
		}
	}
	return out, nil
}

// OpenDeployJob is OpenDeployJob of the queries.
func (t *Tx) OpenDeployJob(ctx context.Context, certificateID, targetID string) (*Job, error) {
	if t.holds(certificateID) {
		return one(t.held.openJobs(certificateID, func(j *Job) bool { return j.Type == Deploy && j.TargetID == targetID }), nil)
	}
	return t.Queries.OpenDeployJob(ctx, certificateID, targetID)
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
	if t.holds(certificateID) {
		return t.held.openJobs(certificateID, func(*Job) bool { return true }), nil
	}
	return t.selectJobs(ctx, `certificate_id = $1 AND end_time IS NULL ORDER BY id FOR UPDATE`, certificateID)
}

// Overdue reads at most limit open jobs whose deadline has passed, oldest first.
func (q Queries) Overdue(ctx context.Context, now time.Time, limit int) ([]*Job, error) {
	return q.selectJobs(ctx, `end_time IS NULL AND deadline_time <= $1 ORDER BY deadline_time, id LIMIT $2`, now, limit)
}

// InsertJob stores a new job; ErrOpen when an open one is in the way.
func (t *Tx) InsertJob(ctx context.Context, j *Job) error {
	if t.holds(j.CertificateID) {
		return t.held.insertJob(j)
	}
	return t.insertJobs(ctx, []*heldJob{{Job: *j}})
}

// insertJobs stores new jobs as they are by now; ErrOpen when an open one is in the way of any.
func (t *Tx) insertJobs(ctx context.Context, jobs []*heldJob) error {
	if len(jobs) == 0 {
		return nil
	}
	c, err := jobArrays(jobs)
	if err != nil {
		return err
	}
	// Of the two partial unique indexes at most one speaks of a job, so that DO NOTHING means just that.
	tag, err := t.db.Exec(ctx, `INSERT INTO jobs (id, type, state, certificate_id, target_id, retry_of, attempt, max_attempts, error_reason, error_message,
 requested_by, askers, approved_by, approval_subject, approval_comment, create_time, start_time, end_time, deadline_time, due_time, revision)
SELECT e.id, e.type, e.state, e.certificate_id, e.target_id, e.retry_of, e.attempt, e.max_attempts, e.error_reason, e.error_message, e.requested_by,
 `+askersOf+`, e.approved_by, e.approval_subject, e.approval_comment, e.create_time, e.start_time, e.end_time, e.deadline_time, e.due_time, e.revision
 FROM unnest(`+jobArrayTypes+`, $15::text[], $16::text[], $17::text[], $18::text[], $19::integer[], $20::text[], $21::timestamptz[])
 AS e (`+jobArrayNames+`, type, certificate_id, target_id, retry_of, max_attempts, requested_by, create_time) ORDER BY e.id ON CONFLICT DO NOTHING`,
		append(c.args(), c.types, c.certificates, c.targets, c.retries, c.most, c.requestedBy, c.created)...)
	if err != nil {
		return fmt.Errorf("store jobs: %w", err)
	}
	if tag.RowsAffected() < int64(len(jobs)) {
		return ErrOpen
	}
	return nil
}

// jobColumnar are the arrays of the statements that store jobs.
type jobColumnar struct {
	ids, states, reasons, messages, askers, approvedBy, subjects, comments []string
	attempts                                                               []int
	revisions                                                              []int32
	started, ended, deadlines, due                                         []*time.Time
	// What never changes.
	types, certificates, targets, retries, requestedBy []string
	most                                               []int
	created                                            []time.Time
}

// What jobColumnar.args passes.
const (
	jobArrayTypes = `$1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::timestamptz[],
 $11::timestamptz[], $12::timestamptz[], $13::timestamptz[], $14::integer[]`
	jobArrayNames = `id, state, attempt, error_reason, error_message, askers, approved_by, approval_subject, approval_comment, start_time, end_time,
 deadline_time, due_time, revision`
)

// askersOf reads a list that is passed as JSON: an array of arrays would have to be a rectangle.
const askersOf = `ARRAY(SELECT a.who FROM jsonb_array_elements_text(e.askers::jsonb) WITH ORDINALITY AS a (who, place) ORDER BY a.place)`

func jobArrays(jobs []*heldJob) (jobColumnar, error) {
	var c jobColumnar
	for _, j := range jobs {
		askers, err := json.Marshal(j.Askers)
		if err != nil {
			return c, fmt.Errorf("encode askers: %w", err)
		}
		c.ids, c.states, c.attempts = append(c.ids, j.ID), append(c.states, string(j.State)), append(c.attempts, j.Attempt)
		c.reasons, c.messages = append(c.reasons, j.Error.Reason), append(c.messages, j.Error.Message)
		c.askers, c.approvedBy = append(c.askers, string(askers)), append(c.approvedBy, j.ApprovedBy)
		c.subjects, c.comments = append(c.subjects, j.ApprovalSubject), append(c.comments, j.ApprovalComment)
		c.started, c.ended = append(c.started, sqlTime(j.StartTime)), append(c.ended, sqlTime(j.EndTime))
		c.deadlines, c.due = append(c.deadlines, sqlTime(j.DeadlineTime)), append(c.due, sqlTime(j.DueTime))
		c.revisions = append(c.revisions, j.Revision)
		c.types, c.certificates, c.targets = append(c.types, string(j.Type)), append(c.certificates, j.CertificateID), append(c.targets, j.TargetID)
		c.retries, c.requestedBy = append(c.retries, j.RetryOf), append(c.requestedBy, j.RequestedBy)
		c.most, c.created = append(c.most, j.MaxAttempts), append(c.created, j.CreateTime)
	}
	return c, nil
}

func (c jobColumnar) args() []any {
	return []any{c.ids, c.states, c.attempts, c.reasons, c.messages, c.askers, c.approvedBy, c.subjects, c.comments, c.started, c.ended, c.deadlines, c.due,
		c.revisions}
}

// Move is a change of a job's state: compare-and-set on the states it may start from and on the revision.
type Move struct {
	From []JobState
	// Job has the new state and values; its Revision is the one it had.
	Job *Job
}

// MoveJob makes the change and raises the revision; ErrChanged. A final job gives its lease back.
func (t *Tx) MoveJob(ctx context.Context, m Move) error {
	if row := t.heldJob(m.Job.ID); row != nil {
		return t.held.move(row, m)
	}
	to := *m.Job
	to.Revision++
	if err := t.moveJobs(ctx, []*heldJob{{Job: to, from: m.From, revision: m.Job.Revision}}); err != nil {
		return err
	}
	m.Job.Revision = to.Revision
	return nil
}

// moveJobs stores changed jobs that are as they were; ErrChanged when any is not.
func (t *Tx) moveJobs(ctx context.Context, jobs []*heldJob) error {
	if len(jobs) == 0 {
		return nil
	}
	c, err := jobArrays(jobs)
	if err != nil {
		return err
	}
	var from []string
	var were []int32
	var back []*uuid.UUID
	for _, j := range jobs {
		states := make([]string, 0, len(j.from))
		for _, s := range j.from {
			states = append(states, string(s))
		}
		from, were, back = append(from, strings.Join(states, " ")), append(were, j.revision), append(back, j.back)
	}
	tag, err := t.db.Exec(ctx, `UPDATE jobs j SET state = e.state, attempt = e.attempt, error_reason = e.error_reason, error_message = e.error_message,
 askers = `+askersOf+`, approved_by = e.approved_by, approval_subject = e.approval_subject, approval_comment = e.approval_comment,
 start_time = e.start_time, end_time = e.end_time, deadline_time = e.deadline_time, due_time = e.due_time, revision = e.revision,
 attempts = CASE WHEN j.lease_id = e.back THEN 0 ELSE j.attempts END,
 lease_id = CASE WHEN e.end_time IS NULL AND j.lease_id IS DISTINCT FROM e.back THEN j.lease_id END,
 lease_until = CASE WHEN e.end_time IS NULL AND j.lease_id IS DISTINCT FROM e.back THEN j.lease_until END
 FROM unnest(`+jobArrayTypes+`, $15::text[], $16::integer[], $17::uuid[]) AS e (`+jobArrayNames+`, states, was, back)
 WHERE j.id = e.id AND j.state = ANY(string_to_array(e.states, ' ')) AND j.revision = e.was`, append(c.args(), from, were, back)...)
	if err != nil {
		return fmt.Errorf("move jobs: %w", err)
	}
	if tag.RowsAffected() < int64(len(jobs)) {
		return ErrChanged
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

// ReleaseJobs gives open jobs back. Those that ended, or that another worker has, stay as they are.
func (q Queries) ReleaseJobs(ctx context.Context, releases []Release) error {
	var ids []string
	var leases []uuid.UUID
	var revisions []int32
	var next []time.Time
	var worked []bool
	for _, r := range releases {
		ids, leases, revisions = append(ids, r.Lease.ID), append(leases, r.Lease.LeaseID), append(revisions, r.Revision)
		next, worked = append(next, r.Next), append(worked, r.Worked)
	}
	// Locked in the order in which Hold locks, so that two that lock many do not wait for each other.
	_, err := q.db.Exec(ctx, `WITH locked AS MATERIALIZED (
 SELECT j.id, e.revision, e.next, e.worked
  FROM jobs j JOIN unnest($1::text[], $2::uuid[], $3::integer[], $4::timestamptz[], $5::boolean[]) AS e (id, lease_id, revision, next, worked)
   ON e.id = j.id AND e.lease_id = j.lease_id ORDER BY j.id FOR UPDATE OF j)
UPDATE jobs j SET lease_id = NULL, lease_until = NULL, attempts = CASE WHEN l.worked THEN 0 ELSE j.attempts END,
 due_time = CASE WHEN j.revision = l.revision THEN l.next ELSE j.due_time END FROM locked l WHERE j.id = l.id`, ids, leases, revisions, next, worked)
	if err != nil {
		return fmt.Errorf("give jobs back: %w", err)
	}
	return nil
}

// JobsByID reads those of the ids that exist.
func (q Queries) JobsByID(ctx context.Context, ids []string) ([]*Job, error) {
	return q.selectJobs(ctx, `id = ANY($1)`, ids)
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

// stuck counts what Stuck does, for the time $1. EXCEPT reads open jobs and plans once each: as NOT EXISTS, with statistics from before
// a storm, Postgres would read all of one for each of the other.
const stuck = `((SELECT count(*) FROM jobs WHERE end_time IS NULL AND deadline_time IS NOT NULL AND (deadline_time < $1
   OR (state <> 'AWAITING_APPROVAL' AND due_time < $1 AND (lease_until IS NULL OR lease_until < $1))))
 + (SELECT count(*) FROM (SELECT id FROM plans WHERE state = 'WORKING' EXCEPT
   SELECT certificate_id FROM jobs WHERE type IN ('ISSUE', 'RENEW') AND end_time IS NULL) lonely)
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

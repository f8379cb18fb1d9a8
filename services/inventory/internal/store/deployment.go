package store

import (
	"context"
	"time"

	"github.com/certctl/certctl/pkg/search"
)

// Deployment is one row of deployments.
type Deployment struct {
	ID                string
	CertificateID     string
	TargetID          string
	AgentID           string
	Status            string
	DesiredVersion    int32
	DeployedVersion   int32
	ServedVersion     int32
	ServedFingerprint string
	VerifyTime        *time.Time
	VerifiedAddress   string
	Force             bool
	Attempt           int32
	DueTime           time.Time
	DeadlineTime      *time.Time
	ErrorReason       string
	ErrorMessage      string
	RequestKey        string
	CreateTime        time.Time
	UpdateTime        time.Time
	Revision          int32
}

const deploymentColumns = `d.id, d.certificate_id, d.target_id, d.agent_id, d.status, d.desired_version, d.deployed_version, d.served_version,
 d.served_fingerprint, d.verify_time, d.verified_address, d.force, d.attempt, d.due_time, d.deadline_time, d.error_reason, d.error_message,
 d.request_key, d.create_time, d.update_time, d.revision`

// GetDeployment reads one.
func (r Reads) GetDeployment(ctx context.Context, id string) (Deployment, error) {
	return one[Deployment](ctx, r.q, "read deployment", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.id = $1`, id)
}

// GetDeployments reads those that there are of the ids.
func (r Reads) GetDeployments(ctx context.Context, ids []string) ([]Deployment, error) {
	return all[Deployment](ctx, r.q, "read deployments", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.id = ANY($1)`, ids)
}

// LockDeployment reads one and keeps others from changing it until the end of the transaction.
func (t *Tx) LockDeployment(ctx context.Context, id string) (Deployment, error) {
	return one[Deployment](ctx, t.q, "lock deployment", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.id = $1 FOR UPDATE`, id)
}

// LockDeploymentOf is LockDeployment by certificate and target.
func (t *Tx) LockDeploymentOf(ctx context.Context, certificateID, targetID string) (Deployment, error) {
	return one[Deployment](ctx, t.q, "lock deployment", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.certificate_id = $1 AND d.target_id = $2 FOR UPDATE`, certificateID, targetID)
}

// DeploymentSelection names deployments by what they belong to; empty fields count for nothing.
type DeploymentSelection struct {
	CertificateID string
	AgentID       string
	TargetID      string
	// TargetIDs, if not nil, keeps those on these targets.
	TargetIDs []string
}

func (s DeploymentSelection) where() *where {
	w := &where{}
	w.Equal("d.certificate_id", s.CertificateID)
	w.Equal("d.agent_id", s.AgentID)
	w.Equal("d.target_id", s.TargetID)
	if s.TargetIDs != nil {
		w.Add("d.target_id = ANY(?)", s.TargetIDs)
	}
	return w
}

// lockOrder is in which order deployments are locked, by all who lock several.
const lockOrder = ` ORDER BY d.agent_id, d.id FOR UPDATE`

// LockDeployments reads deployments and keeps others from changing them until the end of the transaction.
func (t *Tx) LockDeployments(ctx context.Context, s DeploymentSelection) ([]Deployment, error) {
	w := s.where()
	return all[Deployment](ctx, t.q, "lock deployments", `SELECT `+deploymentColumns+` FROM deployments d WHERE `+w.SQL()+lockOrder, w.Args()...)
}

// DeleteDeployments takes deployments away and answers them.
func (t *Tx) DeleteDeployments(ctx context.Context, s DeploymentSelection) ([]Deployment, error) {
	w := s.where()
	return all[Deployment](ctx, t.q, "delete deployments", `WITH locked AS (SELECT d.id FROM deployments d WHERE `+w.SQL()+lockOrder+`)
DELETE FROM deployments d USING locked WHERE d.id = locked.id RETURNING `+deploymentColumns, w.Args()...)
}

// DeploymentsOf reads the deployments of certificates.
func (r Reads) DeploymentsOf(ctx context.Context, certificateIDs []string) ([]Deployment, error) {
	return all[Deployment](ctx, r.q, "read deployments", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.certificate_id = ANY($1) ORDER BY d.certificate_id, d.id`, certificateIDs)
}

// InsertDeployment stores a new PENDING deployment, due now.
func (t *Tx) InsertDeployment(ctx context.Context, d Deployment) error {
	_, err := t.q.Exec(ctx, `INSERT INTO deployments (id, certificate_id, target_id, agent_id, status, desired_version, force, due_time, deadline_time, request_key)
VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, now(), $7, $8)`, d.ID, d.CertificateID, d.TargetID, d.AgentID, d.DesiredVersion, d.Force, d.DeadlineTime, d.RequestKey)
	if err != nil {
		return wrap("insert deployment", err)
	}
	return nil
}

// DeleteDeployment closes a deployment.
func (t *Tx) DeleteDeployment(ctx context.Context, id string) error {
	if _, err := t.q.Exec(ctx, `DELETE FROM deployments WHERE id = $1`, id); err != nil {
		return wrap("delete deployment", err)
	}
	return nil
}

// Desire is what DesireDeployment sets.
type Desire struct {
	Version    int32
	Force      bool
	RequestKey string
	Deadline   time.Time
}

// DesireDeployment makes a deployment due now for a version.
func (t *Tx) DesireDeployment(ctx context.Context, id string, d Desire) (bool, error) {
	tr := deploymentDesire()
	return changed(ctx, t.q, "desire deployment", `UPDATE deployments SET status = $3, desired_version = $4, force = $5,
 request_key = CASE WHEN $6 = '' THEN request_key ELSE $6 END, attempt = 0, due_time = now(), deadline_time = $7, error_reason = '',
 error_message = '', update_time = now(), revision = revision + 1 WHERE id = $1 AND status = ANY($2)`,
		id, tr.From, tr.To, d.Version, d.Force, d.RequestKey, d.Deadline)
}

// StartDeployments notes that the agent has the work, until when it is its own, and answers how many began. Those that had begun
// before are the agent's for longer.
func (t *Tx) StartDeployments(ctx context.Context, ids []string, until time.Time) (int, error) {
	tr := deploymentStart()
	_, err := t.q.Exec(ctx, `UPDATE deployments SET due_time = $3 WHERE id = ANY($1) AND status = $2`, ids, tr.To, until)
	if err != nil {
		return 0, wrap("keep deployments", err)
	}
	return count(ctx, t.q, "start deployments", `UPDATE deployments SET status = $3, attempt = attempt + 1, due_time = $4, update_time = now(),
 revision = revision + 1 WHERE id = ANY($1) AND status = ANY($2)`, ids, tr.From, tr.To, until)
}

// PostponeDeployment sets when the dispatcher looks at a deployment next; its state stays.
func (t *Tx) PostponeDeployment(ctx context.Context, id string, until time.Time) error {
	if _, err := t.q.Exec(ctx, `UPDATE deployments SET due_time = $2 WHERE id = $1`, id, until); err != nil {
		return wrap("postpone deployment", err)
	}
	return nil
}

// Sighting is what an endpoint was seen to serve.
type Sighting struct {
	Version     int32
	Fingerprint string
	Address     string
	Time        time.Time
	// Due is when to look again.
	Due time.Time
}

// ServeDeployment ends a try: the desired version was seen.
func (t *Tx) ServeDeployment(ctx context.Context, id string, s Sighting) (bool, error) {
	tr := deploymentServe()
	return t.sight(ctx, "serve deployment", tr, id, s, `, deployed_version = $4, attempt = 0, force = false, deadline_time = NULL`)
}

// ConfirmDeployment notes that a verification saw the desired version.
func (t *Tx) ConfirmDeployment(ctx context.Context, id string, s Sighting) (bool, error) {
	return t.sight(ctx, "confirm deployment", deploymentConfirm(), id, s, ``)
}

// DriftDeployment notes that a verification saw something else.
func (t *Tx) DriftDeployment(ctx context.Context, id string, s Sighting) (bool, error) {
	return t.sight(ctx, "drift deployment", deploymentDrift(), id, s, ``)
}

func (t *Tx) sight(ctx context.Context, what string, tr Transition, id string, s Sighting, more string) (bool, error) {
	return changed(ctx, t.q, what, `UPDATE deployments SET status = $3, served_version = $4, served_fingerprint = $5, verified_address = $6,
 verify_time = $7, due_time = $8, error_reason = '', error_message = '', update_time = now(), revision = revision + 1`+more+`
 WHERE id = $1 AND status = ANY($2)`, id, tr.From, tr.To, s.Version, s.Fingerprint, s.Address, s.Time, s.Due)
}

// Setback is why a try failed and when the next one is.
type Setback struct {
	Reason  string
	Message string
	Due     time.Time
	// ServedFingerprint and ServedVersion are what the endpoint serves now, if that is known.
	ServedFingerprint string
	ServedVersion     int32
}

// RetryDeployment puts a failed try back.
func (t *Tx) RetryDeployment(ctx context.Context, id string, s Setback) (bool, error) {
	return t.setBack(ctx, "retry deployment", deploymentRetry(), id, s)
}

// FailDeployment gives a deployment up until its slow retry.
func (t *Tx) FailDeployment(ctx context.Context, id string, s Setback) (bool, error) {
	return t.setBack(ctx, "fail deployment", deploymentFail(), id, s)
}

func (t *Tx) setBack(ctx context.Context, what string, tr Transition, id string, s Setback) (bool, error) {
	return changed(ctx, t.q, what, `UPDATE deployments SET status = $3, error_reason = $4, error_message = $5, due_time = $6,
 served_fingerprint = CASE WHEN $7 = '' THEN served_fingerprint ELSE $7 END, served_version = CASE WHEN $7 = '' THEN served_version ELSE $8 END,
 update_time = now(), revision = revision + 1 WHERE id = $1 AND status = ANY($2)`,
		id, tr.From, tr.To, s.Reason, s.Message, s.Due, s.ServedFingerprint, s.ServedVersion)
}

// NoteProblem notes why a verification could not be made; the state stays.
func (t *Tx) NoteProblem(ctx context.Context, id string, s Setback) error {
	_, err := t.q.Exec(ctx, `UPDATE deployments SET error_reason = $2, error_message = $3, due_time = $4, update_time = now(), revision = revision + 1 WHERE id = $1`,
		id, s.Reason, s.Message, s.Due)
	if err != nil {
		return wrap("note problem of deployment", err)
	}
	return nil
}

// ClaimDue locks up to limit deployments in the states that are due.
func (t *Tx) ClaimDue(ctx context.Context, statuses []string, limit int) ([]Deployment, error) {
	return all[Deployment](ctx, t.q, "claim due deployments", `SELECT `+deploymentColumns+` FROM deployments d
 WHERE d.id IN (SELECT id FROM deployments WHERE due_time <= now() AND status = ANY($1) ORDER BY due_time LIMIT $2 FOR UPDATE SKIP LOCKED) ORDER BY d.agent_id, d.id`,
		statuses, limit)
}

// DeploymentFilter is what deployments may be looked for by.
type DeploymentFilter struct {
	CertificateID string
	TargetID      string
	AgentID       string
	Statuses      []string
}

func (f DeploymentFilter) where() *where {
	w := &where{}
	w.Equal("d.certificate_id", f.CertificateID)
	w.Equal("d.target_id", f.TargetID)
	w.Equal("d.agent_id", f.AgentID)
	w.Among("d.status", f.Statuses)
	return w
}

func deploymentTable() search.Table {
	return search.Table{Columns: deploymentColumns, From: "deployments d", Leads: map[string][]string{
		"d.create_time": {"d.certificate_id", "d.target_id", "d.agent_id", "d.status"},
	}, Few: []string{"d.certificate_id", "d.target_id"}}
}

// ListDeployments reads one page.
func (r Reads) ListDeployments(ctx context.Context, f DeploymentFilter, s Slice) ([]Deployment, error) {
	w := f.where()
	return find[Deployment](ctx, r.q, "list deployments", w.search(deploymentTable(), s))
}

// CountDeployments counts what the filter finds.
func (r Reads) CountDeployments(ctx context.Context, f DeploymentFilter) (int32, error) {
	w := f.where()
	return value[int32](ctx, r.q, "count deployments", `SELECT count(*)::int FROM deployments d WHERE `+w.SQL(), w.Args()...)
}

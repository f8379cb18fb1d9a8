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

// LockDeploymentsByID is LockDeployment of many, in the order of their ids; those that are not there are left out.
func (t *Tx) LockDeploymentsByID(ctx context.Context, ids []string) ([]Deployment, error) {
	return all[Deployment](ctx, t.q, "lock deployments", `SELECT `+deploymentColumns+` FROM deployments d WHERE d.id = ANY($1) ORDER BY d.id FOR UPDATE`, ids)
}

// Place is a certificate on a target.
type Place struct{ CertificateID, TargetID string }

// LockDeploymentsAt is LockDeployment by certificate and target, of many; those that are not there are left out.
func (t *Tx) LockDeploymentsAt(ctx context.Context, places []Place) (map[Place]Deployment, error) {
	var certificates, targets []string
	for _, p := range places {
		certificates, targets = append(certificates, p.CertificateID), append(targets, p.TargetID)
	}
	rows, err := all[Deployment](ctx, t.q, "lock deployments", `SELECT `+deploymentColumns+` FROM deployments d
 JOIN unnest($1::text[], $2::text[]) AS e (certificate_id, target_id) ON d.certificate_id = e.certificate_id AND d.target_id = e.target_id
 ORDER BY d.id FOR UPDATE OF d`, certificates, targets)
	found := make(map[Place]Deployment, len(rows))
	for _, d := range rows {
		found[Place{d.CertificateID, d.TargetID}] = d
	}
	return found, err
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

// InsertDeployments stores new PENDING deployments, due at their deadlines: their work is in the mailboxes with them. It answers them.
func (t *Tx) InsertDeployments(ctx context.Context, deployments []Deployment) ([]Deployment, error) {
	if len(deployments) == 0 {
		return nil, nil
	}
	var ids, certificates, targets, agents, requests []string
	var versions []int32
	var force []bool
	var deadlines []*time.Time
	for _, d := range deployments {
		ids, certificates, targets = append(ids, d.ID), append(certificates, d.CertificateID), append(targets, d.TargetID)
		agents, versions, force = append(agents, d.AgentID), append(versions, d.DesiredVersion), append(force, d.Force)
		deadlines, requests = append(deadlines, d.DeadlineTime), append(requests, d.RequestKey)
	}
	return all[Deployment](ctx, t.q, "insert deployments", `INSERT INTO deployments AS d (id, certificate_id, target_id, agent_id, status, desired_version, force, due_time,
 deadline_time, request_key)
SELECT e.id, e.certificate_id, e.target_id, e.agent_id, 'PENDING', e.version, e.force, e.deadline, e.deadline, e.request_key
 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::boolean[], $7::timestamptz[], $8::text[])
  AS e (id, certificate_id, target_id, agent_id, version, force, deadline, request_key)
RETURNING `+deploymentColumns, ids, certificates, targets, agents, versions, force, deadlines, requests)
}

// DeleteDeployment closes a deployment.
func (t *Tx) DeleteDeployment(ctx context.Context, id string) error {
	if _, err := t.q.Exec(ctx, `DELETE FROM deployments WHERE id = $1`, id); err != nil {
		return wrap("delete deployment", err)
	}
	return nil
}

// Desire is what DesireDeployments sets.
type Desire struct {
	ID       string
	Version  int32
	Force    bool
	Deadline time.Time
	// RequestKey is that of a request; empty: the last one stays.
	RequestKey string
}

// DesireDeployments begins deployments anew for a version. They are due at their deadlines: their work is in the mailboxes with them. It
// answers them.
func (t *Tx) DesireDeployments(ctx context.Context, desires []Desire) ([]Deployment, error) {
	if len(desires) == 0 {
		return nil, nil
	}
	var ids, requests []string
	var versions []int32
	var force []bool
	var deadlines []time.Time
	for _, d := range desires {
		ids, requests, versions = append(ids, d.ID), append(requests, d.RequestKey), append(versions, d.Version)
		force, deadlines = append(force, d.Force), append(deadlines, d.Deadline)
	}
	tr := deploymentDesire()
	return all[Deployment](ctx, t.q, "desire deployments", `UPDATE deployments d SET status = $2, desired_version = e.version, force = e.force,
 request_key = CASE WHEN e.request_key = '' THEN d.request_key ELSE e.request_key END, attempt = 0, due_time = e.deadline, deadline_time = e.deadline,
 error_reason = '', error_message = '', update_time = now(), revision = d.revision + 1
 FROM unnest($3::text[], $4::integer[], $5::boolean[], $6::timestamptz[], $7::text[]) AS e (id, version, force, deadline, request_key)
 WHERE d.id = e.id AND d.status = ANY($1) RETURNING `+deploymentColumns, tr.From, tr.To, ids, versions, force, deadlines, requests)
}

// StartDeployments notes that agents have the work, until when it is theirs, and answers how many began.
func (t *Tx) StartDeployments(ctx context.Context, ids []string, until time.Time) (int, error) {
	if len(ids) == 0 {
		return 0, nil
	}
	tr := deploymentStart()
	return count(ctx, t.q, "start deployments", `UPDATE deployments SET status = $3, attempt = attempt + 1, due_time = $4, update_time = now(),
 revision = revision + 1 WHERE id = ANY($1) AND status = ANY($2)`, ids, tr.From, tr.To, until)
}

// KeepDeployments leaves work that has begun to the agents for longer.
func (t *Tx) KeepDeployments(ctx context.Context, ids []string, until time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := t.q.Exec(ctx, `UPDATE deployments SET due_time = $3 WHERE id = ANY($1) AND status = $2`, ids, deploymentStart().To, until)
	if err != nil {
		return wrap("keep deployments", err)
	}
	return nil
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

// Serving is the desired version seen on a deployment's target.
type Serving struct {
	ID string
	Sighting
}

// ServeDeployments ends tries: the desired versions were seen. It answers the deployments that it moved.
func (t *Tx) ServeDeployments(ctx context.Context, seen []Serving) ([]Deployment, error) {
	if len(seen) == 0 {
		return nil, nil
	}
	var ids, fingerprints, addresses []string
	var versions []int32
	var times, due []time.Time
	for _, s := range seen {
		ids, fingerprints, addresses = append(ids, s.ID), append(fingerprints, s.Fingerprint), append(addresses, s.Address)
		versions, times, due = append(versions, s.Version), append(times, s.Time), append(due, s.Due)
	}
	tr := deploymentServe()
	return all[Deployment](ctx, t.q, "serve deployments", `UPDATE deployments d SET status = $2, served_version = e.version, deployed_version = e.version,
 served_fingerprint = e.fingerprint, verified_address = e.address, verify_time = e.verified, due_time = e.due, attempt = 0, force = false,
 deadline_time = NULL, error_reason = '', error_message = '', update_time = now(), revision = d.revision + 1
 FROM unnest($3::text[], $4::integer[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[]) AS e (id, version, fingerprint, address, verified, due)
 WHERE d.id = e.id AND d.status = ANY($1) RETURNING `+deploymentColumns, tr.From, tr.To, ids, versions, fingerprints, addresses, times, due)
}

// ConfirmDeployment notes that a verification saw the desired version.
func (t *Tx) ConfirmDeployment(ctx context.Context, id string, s Sighting) (bool, error) {
	return t.sight(ctx, "confirm deployment", deploymentConfirm(), id, s)
}

// DriftDeployment notes that a verification saw something else.
func (t *Tx) DriftDeployment(ctx context.Context, id string, s Sighting) (bool, error) {
	return t.sight(ctx, "drift deployment", deploymentDrift(), id, s)
}

func (t *Tx) sight(ctx context.Context, what string, tr Transition, id string, s Sighting) (bool, error) {
	return changed(ctx, t.q, what, `UPDATE deployments SET status = $3, served_version = $4, served_fingerprint = $5, verified_address = $6,
 verify_time = $7, due_time = $8, error_reason = '', error_message = '', update_time = now(), revision = revision + 1
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

package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/lease"
)

// held is what a transaction has locked with Hold: the rows as they will be stored, and which of them have changed.
type held struct {
	plans    map[string]*heldPlan // by certificate
	planKeys map[string][]PlanKey // by certificate, in the order of agents
	jobs     map[string]*heldJob  // by id; those that were open, and new ones
	of       map[string][]string  // ids of jobs, by certificate
	policies map[string]*Policy   // nil: there is none

	newJobs    []*heldJob
	movedJobs  []*heldJob
	savedPlans []*heldPlan
	newest     map[[2]string]PlanKey // by certificate and agent
}

type heldPlan struct {
	Plan

	changed bool
}

type heldJob struct {
	Job

	// from and revision are what the stored row is compared with; 0: it is new.
	from     []JobState
	revision int32
	changed  bool
	back     *uuid.UUID          // the lease that is given back with the change
	keys     map[string]*heldKey // by agent
	dropped  []string            // agents whose stored keys are taken off
}

type heldKey struct {
	Key

	stored, changed bool
}

// Hold locks all about certificates: plans first, then their open jobs, in the order of ids. Those without a plan are held, too. After it
// the methods of Tx answer about these certificates from memory, and what they store is written together at the end of the
// transaction: for fifty certificates with the statements of one. It is called once, before anything else is read.
func (t *Tx) Hold(ctx context.Context, certificateIDs ...string) error {
	ids := slices.Compact(slices.Sorted(slices.Values(certificateIDs)))
	h := &held{
		plans: make(map[string]*heldPlan, len(ids)), planKeys: make(map[string][]PlanKey, len(ids)), jobs: make(map[string]*heldJob, len(ids)),
		of: make(map[string][]string, len(ids)), policies: map[string]*Policy{}, newest: map[[2]string]PlanKey{},
	}
	for _, id := range ids {
		h.plans[id] = nil
	}
	plans, err := t.plans(ctx, `id = ANY($1) ORDER BY id FOR UPDATE`, ids)
	if err != nil {
		return err
	}
	for _, p := range plans {
		h.plans[p.CertificateID] = &heldPlan{Plan: *p}
	}
	// Written so that the partial indexes of open jobs serve it, however many jobs a certificate has had.
	jobs, err := t.selectJobs(ctx, `certificate_id = ANY($1) AND (type IN ('ISSUE', 'RENEW') AND end_time IS NULL OR type = 'DEPLOY' AND end_time IS NULL)
 ORDER BY id FOR UPDATE`, ids)
	if err != nil {
		return err
	}
	keys, err := t.KeysOf(ctx, jobs)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		h.take(j, keys[j.ID])
	}
	if h.planKeys, err = t.Queries.PlanKeysOf(ctx, ids); err != nil {
		return err
	}
	t.held = h
	return nil
}

func (h *held) take(j *Job, keys []*Key) {
	row := &heldJob{Job: *j, from: []JobState{j.State}, revision: j.Revision, keys: make(map[string]*heldKey, len(keys))}
	for _, k := range keys {
		row.keys[k.AgentID] = &heldKey{Key: *k, stored: true}
	}
	h.jobs[j.ID] = row
	h.of[j.CertificateID] = append(h.of[j.CertificateID], j.ID)
}

// holds tells whether all these certificates are held.
func (t *Tx) holds(certificateIDs ...string) bool {
	if t.held == nil {
		return false
	}
	for _, id := range certificateIDs {
		if _, ok := t.held.plans[id]; !ok {
			return false
		}
	}
	return true
}

// heldJob gives a job of a held certificate that was open when it was locked; nil: it is not held.
func (t *Tx) heldJob(id string) *heldJob {
	if t.held == nil {
		return nil
	}
	return t.held.jobs[id]
}

// heldPlans gives the plans that there are, in the order of their certificates.
func (h *held) plansOf(certificateIDs []string) []*Plan {
	out := make([]*Plan, 0, len(certificateIDs))
	for _, id := range slices.Compact(slices.Sorted(slices.Values(certificateIDs))) {
		if p := h.plans[id]; p != nil {
			plan := p.Plan
			out = append(out, &plan)
		}
	}
	return out
}

// openJobs gives the open jobs of a certificate that fit, in the order of their ids.
func (h *held) openJobs(certificateID string, fits func(*Job) bool) []*Job {
	var out []*Job
	for _, id := range h.of[certificateID] {
		if j := h.jobs[id]; !j.State.Final() && fits(&j.Job) {
			job := j.Job
			out = append(out, &job)
		}
	}
	return out
}

func (h *held) savePlans(plans []*Plan) error {
	for _, p := range plans {
		row := h.plans[p.CertificateID]
		if row == nil {
			return fmt.Errorf("store plan of %s: %w", p.CertificateID, ErrNotFound)
		}
		if row.Plan = *p; !row.changed {
			row.changed = true
			h.savedPlans = append(h.savedPlans, row)
		}
	}
	return nil
}

func (h *held) savePlanKeys(keys []PlanKey) {
	for _, k := range keys {
		all := h.planKeys[k.CertificateID]
		i := slices.IndexFunc(all, func(other PlanKey) bool { return other.AgentID == k.AgentID })
		switch {
		case i < 0:
			all = append(slices.Clone(all), k)
			slices.SortFunc(all, func(a, b PlanKey) int { return cmp.Compare(a.AgentID, b.AgentID) })
			h.planKeys[k.CertificateID] = all
		case all[i].Version < k.Version:
			all[i] = k
		default:
			continue
		}
		h.newest[[2]string{k.CertificateID, k.AgentID}] = k
	}
}

// insertJob is InsertJob: the certificate's plan is locked, so that no other open job can come.
func (h *held) insertJob(j *Job) error {
	inTheWay := func(other *Job) bool {
		return other.MakesKeys() && j.MakesKeys() || other.Type == j.Type && other.TargetID == j.TargetID
	}
	if len(h.openJobs(j.CertificateID, inTheWay)) > 0 {
		return ErrOpen
	}
	row := &heldJob{Job: *j, keys: map[string]*heldKey{}}
	h.jobs[j.ID] = row
	h.of[j.CertificateID] = append(h.of[j.CertificateID], j.ID)
	h.newJobs = append(h.newJobs, row)
	return nil
}

// move is MoveJob.
func (h *held) move(row *heldJob, m Move) error {
	if !slices.Contains(m.From, row.State) || row.Revision != m.Job.Revision {
		return ErrChanged
	}
	m.Job.Revision++
	row.Job = *m.Job
	if row.revision > 0 && !row.changed {
		row.changed = true
		h.movedJobs = append(h.movedJobs, row)
	}
	return nil
}

// GiveBack gives the lease of a held job back with the change that was made of it: it is due at its DueTime. A lease that is another's
// by then stays as it is. A job that ends is given back anyway.
func (t *Tx) GiveBack(j *Job, l lease.Lease) {
	row := t.heldJob(j.ID)
	if row == nil || !row.changed || j.State.Final() {
		return
	}
	row.DueTime, row.back = j.DueTime, &l.LeaseID
}

// GivenBack tells whether GiveBack has done so.
func (t *Tx) GivenBack(jobID string) bool {
	row := t.heldJob(jobID)
	return row != nil && row.back != nil
}

func (j *heldJob) sortedKeys() []*Key {
	out := make([]*Key, 0, len(j.keys))
	for _, agent := range slices.Sorted(maps.Keys(j.keys)) {
		k := j.keys[agent].Key
		out = append(out, &k)
	}
	return out
}

func (j *heldJob) addKey(k *Key) {
	if j.keys[k.AgentID] == nil {
		j.keys[k.AgentID] = &heldKey{Key: *k}
	}
}

func (j *heldJob) saveKey(k *Key) error {
	row := j.keys[k.AgentID]
	if row == nil {
		return ErrNotFound
	}
	row.Key, row.changed = *k, true
	return nil
}

func (j *heldJob) dropKey(k *Key) {
	if row := j.keys[k.AgentID]; row != nil && row.stored {
		j.dropped = append(j.dropped, k.AgentID)
	}
	delete(j.keys, k.AgentID)
}

// flush writes what has changed, each kind in one statement. A job that ends makes room for a new one, and a key that is taken off for
// one that takes its place.
func (t *Tx) flush(ctx context.Context) error {
	h := t.held
	if h == nil {
		return nil
	}
	if err := t.moveJobs(ctx, h.movedJobs); err != nil {
		return err
	}
	if err := t.insertJobs(ctx, h.newJobs); err != nil {
		return err
	}
	if err := t.flushKeys(ctx, slices.Collect(maps.Values(h.jobs))); err != nil {
		return err
	}
	if len(h.newest) > 0 {
		if err := t.upsertPlanKeys(ctx, slices.Collect(maps.Values(h.newest))); err != nil {
			return err
		}
	}
	if len(h.savedPlans) == 0 {
		return nil
	}
	plans := make([]*Plan, 0, len(h.savedPlans))
	for _, p := range h.savedPlans {
		plans = append(plans, &p.Plan)
	}
	return t.updatePlans(ctx, plans)
}

func (t *Tx) flushKeys(ctx context.Context, jobs []*heldJob) error {
	var dropped, added, changed []*Key
	for _, j := range jobs {
		for _, agent := range j.dropped {
			dropped = append(dropped, &Key{JobID: j.ID, AgentID: agent})
		}
		for _, k := range j.keys {
			switch {
			case !k.stored:
				added = append(added, &k.Key)
			case k.changed:
				changed = append(changed, &k.Key)
			}
		}
	}
	if err := t.deleteKeys(ctx, dropped); err != nil {
		return err
	}
	if err := t.insertKeys(ctx, added); err != nil {
		return err
	}
	return t.updateKeys(ctx, changed)
}

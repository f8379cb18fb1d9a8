package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// jobsFor makes a plan and a PENDING job for each of n certificates.
func (c *Core) jobsFor(t *testing.T, n int) []*store.Job {
	t.Helper()
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("cert-%d-%d", n, i))
	}
	c.plansFor(t, ids...)
	var jobs []*store.Job
	require.NoError(t, c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		jobs = nil
		for _, id := range ids {
			j, err := c.openJob(ctx, tx, opening{kind: store.Issue, certificateID: id, requestedBy: "anna"})
			if err != nil {
				return err
			}
			jobs = append(jobs, j)
		}
		return nil
	}))
	return jobs
}

// edits waits for the CSR of an agent for each job, whose tasks these are.
func (c *Core) edits(t *testing.T, jobs []*store.Job) (list []edit, tasks []string) {
	t.Helper()
	for _, j := range jobs {
		task := uuid.NewString()
		tasks = append(tasks, task)
		list = append(list, edit{ctx: t.Context(), seen: j, make: func(ctx context.Context, tx *store.Tx, j *store.Job) error {
			k := &store.Key{JobID: j.ID, AgentID: "agent-1", State: store.KeyAwaitingCSR, TaskID: task}
			if err := tx.AddKeys(ctx, k); err != nil {
				return err
			}
			return c.awaitCSR().apply(ctx, tx, j)
		}})
	}
	return list, tasks
}

func TestFiftyJobsOnTheirWayCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	c, sent := countedCore(t)
	cost := map[int]map[string]int64{}
	for _, n := range []int{1, 50} {
		jobs := c.jobsFor(t, n)
		list, tasks := c.edits(t, jobs)
		counted := map[string]int64{}
		during := func(what string, fn func()) {
			before := sent.n.Load()
			fn()
			counted[what] = sent.n.Load() - before
		}
		var leases []lease.Lease
		during("claim", func() {
			var err error
			leases, err = c.store.JobQueue().Claim(t.Context(), c.store.Pool(), n, time.Minute)
			require.NoError(t, err)
			require.Len(t, leases, n)
		})
		during("edits", func() {
			outcomes, err := c.writeEdits(t.Context(), list)
			require.NoError(t, err)
			for i, o := range outcomes {
				require.NoError(t, o.Err)
				require.Equal(t, store.AwaitingCSR, o.Value.job.State)
				require.Equal(t, tasks[i], o.Value.keys[0].TaskID)
			}
		})
		during("releases", func() {
			var releases []store.Release
			for i, l := range leases {
				releases = append(releases, store.Release{Lease: l, Revision: int32(2), Next: time.Now().Add(time.Hour), Worked: i%2 == 0})
			}
			require.Equal(t, make([]batch.Outcome[struct{}], n), c.writeReleases(t.Context(), releases))
		})
		during("CSRs", func() {
			var events []*eventv1.Event
			for i, j := range jobs {
				events = append(events, eventOf(t, "task.finished", &inventoryv1.TaskFinished{CertificateId: j.CertificateID, TaskId: tasks[i], AgentId: "agent-1", CsrPem: "CSR"}))
			}
			require.NoError(t, c.applyAll(t, events...))
		})
		during("looks", func() {
			var ids []string
			for _, j := range jobs {
				ids = append(ids, j.ID)
			}
			seen, err := c.readJobs(t.Context(), ids)
			require.NoError(t, err)
			require.Len(t, seen, n)
			for _, s := range seen {
				require.Equal(t, "CSR", s.keys[0].CsrPEM)
				require.False(t, s.job.DueTime.After(time.Now()), "there is something new about it")
			}
		})
		cost[n] = counted
	}
	require.Equal(t, cost[1], cost[50])
	// Plans, jobs, keys, keys of plans; then jobs, keys and the revision.
	require.LessOrEqual(t, cost[50]["edits"], int64(7))
	require.LessOrEqual(t, cost[50]["CSRs"], int64(7))
	require.EqualValues(t, 1, cost[50]["releases"])
	require.EqualValues(t, 2, cost[50]["looks"])
}

func TestFiftyDuePlansCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	c, sent := countedCore(t)
	cost := map[int]int64{}
	for _, n := range []int{1, 50} {
		records := map[string]*inventoryv1.CertificateRecord{}
		var stored []*eventv1.Event
		var ids []string
		for i := range n {
			id := fmt.Sprintf("cert-%d-%d", n, i)
			ids = append(ids, id)
			records[id] = &inventoryv1.CertificateRecord{
				Certificate: &inventoryv1.Certificate{Id: id, PolicyId: "pol-default", Status: inventoryv1.Certificate_ACTIVE, CurrentVersion: 1},
				KeyHolders:  []*inventoryv1.KeyHolder{{AgentId: "agent-1"}},
			}
			stored = append(stored, eventOf(t, "version.stored", &inventoryv1.VersionStored{
				CertificateId: id, Version: 1, AgentId: "agent-1", NotBefore: timestamppb.New(time.Now().Add(-89 * 24 * time.Hour)), NotAfter: timestamppb.New(time.Now().Add(24 * time.Hour)),
			}))
		}
		c.plansFor(t, ids...)
		require.NoError(t, c.applyAll(t, stored...))
		leases, err := c.store.ScheduledPlans().Claim(t.Context(), c.store.Pool(), n, time.Minute)
		require.NoError(t, err)
		require.Len(t, leases, n)
		var list []start
		for _, l := range leases {
			list = append(list, start{lease: l, record: records[l.ID], free: len(list)%2 == 0})
		}
		lost := start{lease: lease.Lease{ID: ids[0], LeaseID: uuid.New()}, record: records[ids[0]]}

		before := sent.n.Load()
		outcomes, err := c.writeStarts(t.Context(), append(list, lost))
		cost[n] = sent.n.Load() - before

		require.NoError(t, err)
		for i := range list {
			require.Equal(t, batch.Outcome[bool]{Value: true}, outcomes[i])
			j, err := c.store.OpenJob(t.Context(), list[i].lease.ID)
			require.NoError(t, err)
			require.Equal(t, store.Renew, j.Type)
			seen, err := c.readJobs(t.Context(), []string{j.ID})
			require.NoError(t, err)
			if list[i].free {
				require.Equal(t, store.AwaitingCSR, j.State, "it needs no approval")
				require.Equal(t, 1, j.Attempt)
				require.Len(t, seen[j.ID].keys, 1)
				require.NotEmpty(t, seen[j.ID].keys[0].TaskID)
			} else {
				require.Equal(t, store.Pending, j.State)
				require.Empty(t, seen[j.ID].keys)
			}
			require.False(t, j.DueTime.After(time.Now()))
			p, err := c.store.Plan(t.Context(), list[i].lease.ID)
			require.NoError(t, err)
			require.Equal(t, store.PlanWorking, p.State)
		}
	}
	require.Equal(t, cost[1], cost[50])
	// The leases; plans, jobs, keys of plans, policies; then jobs, their keys, plans, events and the revision.
	require.LessOrEqual(t, cost[50], int64(11))
}

func TestAJobIsGivenBackWithTheChangeThatEndsTheLook(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	jobs := c.jobsFor(t, 2)
	leases, err := c.store.JobQueue().Claim(t.Context(), c.store.Pool(), 2, time.Minute)
	require.NoError(t, err)
	list, _ := c.edits(t, jobs)
	next := c.now().Add(time.Hour)
	for i, l := range map[int]lease.Lease{0: leaseOf(leases, jobs[0]), 1: {ID: jobs[1].ID, LeaseID: uuid.New()}} {
		change := list[i].make
		list[i].make = func(ctx context.Context, tx *store.Tx, j *store.Job) error {
			if err := change(ctx, tx, j); err != nil {
				return err
			}
			j.DueTime = next
			tx.GiveBack(j, l)
			return nil
		}
	}

	outcomes, err := c.writeEdits(t.Context(), list)

	require.NoError(t, err)
	for i, o := range outcomes {
		require.NoError(t, o.Err)
		require.True(t, o.Value.givenBack)
		seen, err := c.readJobs(t.Context(), []string{jobs[i].ID})
		require.NoError(t, err)
		require.Equal(t, store.AwaitingCSR, seen[jobs[i].ID].job.State)
		require.Equal(t, next, seen[jobs[i].ID].job.DueTime)
	}
	require.ErrorIs(t, c.store.JobQueue().Extend(t.Context(), c.store.Pool(), leaseOf(leases, jobs[0]), time.Minute), lease.ErrLost)
	require.NoError(t, c.store.JobQueue().Extend(t.Context(), c.store.Pool(), leaseOf(leases, jobs[1]), time.Minute), "the lease of another stays")
}

func leaseOf(leases []lease.Lease, j *store.Job) lease.Lease {
	return leases[slices.IndexFunc(leases, func(l lease.Lease) bool { return l.ID == j.ID })]
}

func TestAJobThatCannotGoOnHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	jobs := c.jobsFor(t, 5)
	list, _ := c.edits(t, jobs)
	moved := *jobs[1]
	moved.Revision--
	list[1].seen = &moved
	failed := errors.New("it is not possible")
	stored := list[2].make
	list[2].make = func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		return errors.Join(stored(ctx, tx, j), failed)
	}
	list[3].make = func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		j.Error = store.Problem{Reason: "NUL", Message: "a \x00 that Postgres does not take"}
		return tx.SaveJob(ctx, j)
	}

	outcomes := pg.AllOrEach(list, func(list []edit) ([]batch.Outcome[seenJob], error) { return c.writeEdits(t.Context(), list) })

	require.NoError(t, outcomes[0].Err)
	require.ErrorIs(t, outcomes[1].Err, errGone)
	require.ErrorIs(t, outcomes[2].Err, failed)
	require.Error(t, outcomes[3].Err)
	require.NoError(t, outcomes[4].Err)
	for i, state := range []store.JobState{store.AwaitingCSR, store.Pending, store.Pending, store.Pending, store.AwaitingCSR} {
		seen, err := c.readJobs(t.Context(), []string{jobs[i].ID})
		require.NoError(t, err)
		require.Equal(t, state, seen[jobs[i].ID].job.State, i)
		require.Len(t, seen[jobs[i].ID].keys, map[store.JobState]int{store.AwaitingCSR: 1}[state], "what was not stored of one has left nothing")
	}
}

func TestWhatIsHeldAnswersAsTheDatabaseWould(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	jobs := c.jobsFor(t, 1)
	id := jobs[0].CertificateID
	require.NoError(t, c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		require.NoError(t, tx.Hold(ctx, id, "cert-none"))
		_, err := tx.LockPlan(ctx, "cert-none")
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = c.openJob(ctx, tx, opening{kind: store.Renew, certificateID: id, requestedBy: "bert"})
		require.ErrorIs(t, err, store.ErrOpen, "one job makes keys at a time")

		j, err := tx.LockJob(ctx, jobs[0].ID)
		require.NoError(t, err)
		stale := *j
		require.NoError(t, tx.AddKeys(ctx, &store.Key{JobID: j.ID, AgentID: "agent-2", State: store.KeyAwaitingCSR}, &store.Key{JobID: j.ID, AgentID: "agent-1", State: store.KeyAwaitingCSR}))
		require.NoError(t, tx.DeleteKey(ctx, &store.Key{JobID: j.ID, AgentID: "agent-2"}))
		require.ErrorIs(t, tx.SaveKey(ctx, &store.Key{JobID: j.ID, AgentID: "agent-2"}), store.ErrNotFound)
		require.NoError(t, c.awaitCSR().apply(ctx, tx, j))
		require.ErrorIs(t, tx.SaveJob(ctx, &stale), store.ErrChanged)
		require.ErrorIs(t, c.run().apply(ctx, tx, j), store.ErrChanged, "no way leads there")
		require.NoError(t, c.end(ctx, tx, j, ending{transition: c.cancel(), action: "job.cancelled", byPerson: true}))
		_, err = tx.OpenJob(ctx, id)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = c.openJob(ctx, tx, opening{kind: store.Renew, certificateID: id, requestedBy: "bert", agents: []string{"agent-3"}})
		return err
	}))
	seen, err := c.readJobs(t.Context(), []string{jobs[0].ID})
	require.NoError(t, err)
	require.Equal(t, store.Cancelled, seen[jobs[0].ID].job.State)
	require.EqualValues(t, 3, seen[jobs[0].ID].job.Revision, "each change counts")
	require.Len(t, seen[jobs[0].ID].keys, 1)
	open, err := c.store.OpenJob(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, "bert", open.RequestedBy)
	p, err := c.store.Plan(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, store.PlanWorking, p.State)
}

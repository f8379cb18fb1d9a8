// Package core decides: when certificates are renewed, what their jobs do next, and why things are as they are. It
// calls inventory and issuance only outside of transactions, with ids that it has stored before.
package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/tick"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// Who asks for jobs that nobody asked for.
const (
	RenewalCheck = "system:renewal-check"
	Drift        = "system:drift"
	system       = "system"
)

// Config has the limits of the work.
type Config struct {
	// Concurrency bounds how many jobs, and how many due certificates, are worked on at a time.
	Concurrency int
	// StartTimeout bounds the time in which a job must get to its first call.
	StartTimeout time.Duration
	// CSRTimeout bounds the wait for an agent's CSR, CallerCSRTimeout for one that the caller posts.
	CSRTimeout       time.Duration
	CallerCSRTimeout time.Duration
	// CATimeout is after how long a pending order is reported; it stays pending.
	CATimeout time.Duration
	// DeployTimeout bounds a DEPLOY job.
	DeployTimeout time.Duration
}

// Deps are what the core works with.
type Deps struct {
	Store     *store.Store
	Inventory inventoryv1.InventoryInternalServiceClient
	Issuance  issuancev1.IssuanceInternalServiceClient
	Log       *zap.Logger
	Registry  prometheus.Registerer
	// Now is the clock; it is the one that the store was made with.
	Now func() time.Time
}

// Kicks start loops at once.
type Kicks struct {
	Renewals, Jobs, Retries, Deadlines, Cancellations *tick.Kicker
}

// Core is the service without its edges.
type Core struct {
	cfg       Config
	store     *store.Store
	inventory inventoryv1.InventoryInternalServiceClient
	issuance  issuancev1.IssuanceInternalServiceClient
	log       *zap.Logger
	clock     func() time.Time
	kicks     Kicks

	jobs, scheduled, retrying, cancellations *lease.Runner

	together *together
}

const (
	// leaseFor is how long a dead process keeps a row; a live one renews the lease while it works.
	leaseFor = 10 * time.Second
	// workFor bounds the work on one row. It outlives the longest call that a handler makes.
	workFor = 90 * time.Second
	// lookAgain is how often a running sweep looks for rows that became due by time alone.
	lookAgain = 5 * time.Second
)

// New makes a core and starts nothing.
func New(cfg Config, deps Deps) (*Core, error) {
	c := &Core{
		cfg: cfg, store: deps.Store, inventory: deps.Inventory, issuance: deps.Issuance, log: deps.Log, clock: deps.Now,
		kicks: Kicks{
			Renewals: tick.NewKicker(), Jobs: tick.NewKicker(), Retries: tick.NewKicker(), Deadlines: tick.NewKicker(), Cancellations: tick.NewKicker(),
		},
	}
	c.together = newTogether(c)
	// Somebody may wait for a job: it is not behind all those that became due by themselves, nor they behind all that one client asks for.
	turns, err := lease.NewSharer(lease.SharerDeps{Table: deps.Store.JobQueue(), DB: deps.Store.Pool(), Handle: c.workJob, PerGroup: cfg.Concurrency})
	if err != nil {
		return nil, fmt.Errorf("share out jobs: %w", err)
	}
	for _, q := range []struct {
		into   **lease.Runner
		name   string
		table  *lease.Table
		handle lease.Handler
		claim  lease.Claimer
	}{
		{&c.jobs, "jobs", deps.Store.JobQueue(), turns.Handle, turns.Claim},
		{&c.scheduled, "renewals", deps.Store.ScheduledPlans(), c.workPlan, nil},
		{&c.retrying, "renewal_retries", deps.Store.RetryingPlans(), c.workPlan, nil},
		{&c.cancellations, "task_cancellations", deps.Store.Cancellations(), c.cancelTask, nil},
	} {
		r, err := lease.NewRunner(lease.RunnerConfig{
			Name: q.name, Slots: cfg.Concurrency, LeaseFor: leaseFor, Timeout: workFor, Interval: lookAgain,
			Backoff: lease.Backoff{Base: 2 * time.Second, Cap: 2 * time.Minute},
		}, lease.RunnerDeps{Table: q.table, DB: deps.Store.Pool(), Handle: q.handle, Claim: q.claim, Logger: deps.Log, Registry: deps.Registry})
		if err != nil {
			return nil, fmt.Errorf("make runner: %w", err)
		}
		*q.into = r
	}
	turns.OnRoom(c.jobs.Kick)
	return c, nil
}

// Kicks gives what starts the loops.
func (c *Core) Kicks() Kicks { return c.kicks }

// Kick says that something has changed: jobs are looked at, now and in a sweep that runs.
func (c *Core) Kick() {
	c.kicks.Jobs.Kick()
	c.jobs.Kick()
	c.kicks.Cancellations.Kick()
}

// now is in Postgres's precision, so that what is stored compares equal.
func (c *Core) now() time.Time { return c.clock().UTC().Truncate(time.Microsecond) }

func newID(prefix string) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make id: %w", err)
	}
	return prefix + "-" + id.String(), nil
}

// record asks inventory for a certificate; nil when it knows none.
func (c *Core) record(ctx context.Context, id string) (*inventoryv1.CertificateRecord, error) {
	rec, _, err := c.together.records.Get(ctx, id)
	return rec, err
}

// knownRecord is record for callers: 404 when there is none.
func (c *Core) knownRecord(ctx context.Context, id string) (*inventoryv1.CertificateRecord, error) {
	rec, err := c.record(ctx, id)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "certificate %s not found", id).With("certificate_id", id)
	}
	return rec, nil
}

// profile asks issuance for a profile. Anything but the profile is an error: who cannot know whether approval is
// needed does not go on.
func (c *Core) profile(ctx context.Context, id string) (*issuancev1.Profile, error) {
	p, ok, err := c.together.profiles.Get(ctx, id)
	if err != nil || ok {
		return p, err
	}
	return nil, errs.New(errs.NotFound, "PROFILE_NOT_FOUND", "profile %s not found", id)
}

// policyOf reads a certificate's policy. A policy that is gone counts as the defaults.
func policyOf(ctx context.Context, q interface {
	Policy(ctx context.Context, id string) (*store.Policy, error)
}, id string,
) (*store.Policy, error) {
	p, err := q.Policy(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return withoutPolicy(id), nil
	}
	return p, err
}

// policiesOf is policyOf of many, by id.
func policiesOf(ctx context.Context, tx *store.Tx, ids []string) (map[string]*store.Policy, error) {
	found, err := tx.PoliciesByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*store.Policy, len(ids))
	for _, id := range ids {
		out[id] = withoutPolicy(id)
	}
	for _, p := range found {
		out[p.ID] = p
	}
	return out, nil
}

// withoutPolicy is what holds for a certificate whose policy is not there.
func withoutPolicy(id string) *store.Policy {
	return &store.Policy{ID: id, Automatic: true, MaxAttempts: DefaultMaxAttempts}
}

// closed tells whether a certificate is over: nothing is issued or deployed for it any more.
func closed(status string) bool {
	return status == inventoryv1.Certificate_REVOKED.String() || status == inventoryv1.Certificate_ARCHIVED.String()
}

// refuseClosed is 409 for a certificate that is over.
func refuseClosed(cert *inventoryv1.Certificate) error {
	status := cert.GetStatus().String()
	if !closed(status) {
		return nil
	}
	return errs.New(errs.Conflict, "CERTIFICATE_"+status, "certificate %s is %s", cert.GetId(), status).With("state", status)
}

// problem makes what is stored and shown of an error; its internal cause stays in the log.
func problem(err error) store.Problem {
	e := errs.From(err)
	return store.Problem{Reason: e.Reason(), Message: e.Message()}
}

// undecided tells whether a call may have worked, or may work soon, without anything being changed.
func undecided(err error) bool {
	return errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded, errs.Canceled, errs.Internal, errs.ResourceExhausted,
		errs.Unauthenticated, errs.PermissionDenied, errs.Unimplemented)
}

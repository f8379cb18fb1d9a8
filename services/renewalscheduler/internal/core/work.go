package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

const (
	// lookAgainCSR and lookAgainCA are how often the other side is asked again, in case its event was lost or late.
	lookAgainCSR    = 5 * time.Minute
	lookAgainDeploy = time.Minute
	// An order may be pending for days: it is asked about less and less often.
	lookAgainCA     = time.Minute
	lookAgainCAMost = 6 * time.Hour
)

// lookAgainAtCA gives the wait for the next look at orders that have been waited for since a time.
func lookAgainAtCA(waited time.Duration) time.Duration {
	return tick.Jittered(min(max(waited/4, lookAgainCA), lookAgainCAMost), tick.DefaultJitter)
}

// postponed says that nothing can be done now: a peer is away, or cannot say what must be known.
type postponed struct{ cause error }

func (p *postponed) Error() string { return "postponed: " + p.cause.Error() }
func (p *postponed) Unwrap() error { return p.cause }

// errGone says that the job was changed by somebody else between two steps: it is due again, or has ended.
var errGone = errors.New("the job has moved on")

// work is one look at a job under its lease.
type work struct {
	*Core
	lease lease.Lease
	job   *store.Job
	keys  []*store.Key
	rec   *inventoryv1.CertificateRecord
	// troubled: an order says in this look why it is still open.
	troubled bool
	// backAt is when the job is due again after the change that ends this look, which gives it back; zero: it is given back by itself.
	backAt    time.Time
	givenBack bool
}

// WorkJobs is the job processor: it works on what is due.
func (c *Core) WorkJobs(ctx context.Context) (tick.Result, error) { return c.jobs.Sweep(ctx) }

// CancelTasks takes back the tasks of jobs that have ended.
func (c *Core) CancelTasks(ctx context.Context) (tick.Result, error) {
	return c.cancellations.Sweep(ctx)
}

// Watch wakes the slower loops when the time has come for them, so that their intervals are only a floor.
func (c *Core) Watch(ctx context.Context) (tick.Result, error) {
	due, err := c.store.LookAhead(ctx, c.now())
	if err != nil {
		return tick.Result{}, err
	}
	r := tick.Result{}
	for _, k := range []struct {
		due    bool
		kicker *tick.Kicker
	}{{due.Renewals, c.kicks.Renewals}, {due.Retries, c.kicks.Retries}, {due.Deadlines, c.kicks.Deadlines}, {due.Jobs, c.kicks.Jobs}} {
		if k.due {
			k.kicker.Kick()
			r.Rows++
		}
	}
	return r, nil
}

// workJob takes a job as far as it goes now, and gives it back.
func (c *Core) workJob(ctx context.Context, l lease.Lease) error {
	seen, ok, err := c.together.jobs.Get(ctx, l.ID)
	if err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	if !ok {
		return fmt.Errorf("read job: %w", store.ErrNotFound)
	}
	w := &work{Core: c, lease: l, job: seen.job, keys: seen.keys}
	next, err := w.step(ctx)
	for err == nil && next.IsZero() && !w.job.State.Final() {
		next, err = w.step(ctx)
	}
	release := store.Release{Lease: l, Revision: w.job.Revision, Next: next, Worked: true}
	switch late := (*postponed)(nil); {
	case errors.Is(err, errGone):
		// Whoever changed it has said when it is due.
		release.Revision, release.Next = -1, c.now()
	case errors.As(err, &late):
		return c.postpone(ctx, w, late)
	case err != nil:
		return err
	}
	if w.job.State.Final() || w.givenBack {
		return nil
	}
	if _, err := c.together.releases.Do(ctx, release); err != nil {
		return err
	}
	if !release.Next.After(c.now()) {
		c.jobs.Kick()
	}
	return nil
}

// postpone notes why, and gives the job back for a little later. It costs no attempt of the job.
func (c *Core) postpone(ctx context.Context, w *work, late *postponed) error {
	c.log.Warn("a job waits", logx.ID(logx.KeyJob, w.job.ID), zap.Int("attempts", w.lease.Attempts), logx.Error(late.cause))
	wait, _ := lease.Backoff{Base: 2 * time.Second, Cap: time.Minute}.Next(w.lease.Attempts)
	err := c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error {
		j, err := tx.LockJob(ctx, w.job.ID)
		if err != nil || j.State.Final() || j.Revision != w.job.Revision || j.Error == problem(late.cause) {
			return err
		}
		j.Error = problem(late.cause)
		if err := tx.SaveJob(ctx, j); err != nil {
			return err
		}
		w.job = j
		tx.Changed(store.Jobs)
		return nil
	})
	if err != nil {
		return err
	}
	_, err = c.together.releases.Do(ctx, store.Release{Lease: w.lease, Revision: w.job.Revision, Next: c.now().Add(wait)})
	return err
}

// step does what the state asks for. A zero time asks for another step at once.
func (w *work) step(ctx context.Context) (next time.Time, err error) {
	if w.rec == nil {
		if w.rec, err = w.record(ctx, w.job.CertificateID); err != nil {
			return next, &postponed{err}
		}
	}
	if w.rec == nil {
		return next, w.finish(ctx, ending{transition: w.fail(), action: "job.failed",
			problem: store.Problem{Reason: "CERTIFICATE_NOT_FOUND", Message: "the certificate does not exist"}})
	}
	if status := w.rec.GetCertificate().GetStatus().String(); closed(status) {
		return next, w.finish(ctx, ending{transition: w.cancel(), action: "job.cancelled",
			problem: store.Problem{Reason: "CERTIFICATE_" + status, Message: "the certificate is " + status}})
	}
	switch {
	case w.job.State == store.AwaitingApproval:
		return w.job.DeadlineTime, nil
	case !w.job.MakesKeys():
		return w.stepDeploy(ctx)
	case w.job.State == store.Pending:
		return w.stepStart(ctx)
	default:
		return w.stepKeys(ctx)
	}
}

// change runs fn on the locked job if it is as this worker last saw it, and then on: fn changes and stores it. It may run more than once.
func (w *work) change(ctx context.Context, fn func(ctx context.Context, tx *store.Tx, j *store.Job) error) error {
	after, err := w.together.changes.Do(ctx, edit{ctx: ctx, seen: w.job, make: fn})
	if err == nil {
		w.job, w.keys, w.givenBack = after.job, after.keys, after.givenBack
	}
	return err
}

// arrangeAnew is arrange for the keys as they are.
func (w *work) arrangeAnew(ctx context.Context) error {
	return w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		keys, err := tx.Keys(ctx, j.ID)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(keys, w.left) {
			if keys, err = w.dropLeft(ctx, tx, j, keys); err != nil {
				return err
			}
		}
		return w.arrange(ctx, tx, j, keys)
	})
}

func (w *work) finish(ctx context.Context, e ending) error {
	return w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error { return w.end(ctx, tx, j, e) })
}

// defaultApprovalTimeout is for profiles that do not say how long an approval may take.
const defaultApprovalTimeout = 7 * 24 * time.Hour

// gate sends the job to its approvers unless it may run: no approval is asked for, or somebody gave it for what the
// certificate is now. Who cannot know does not pass.
func (w *work) gate(ctx context.Context) (passed bool, err error) {
	cert := w.rec.GetCertificate()
	profile, err := w.profile(ctx, cert.GetProfileId())
	if err != nil {
		return false, &postponed{err}
	}
	if !profile.GetRequiresApproval() {
		return true, nil
	}
	is := subject(cert)
	if err := w.told(ctx, is); err != nil {
		return false, err
	}
	if w.job.ApprovedBy != "" && w.job.ApprovalSubject == is {
		return true, nil
	}
	timeout := cmp.Or(profile.GetApprovalTimeout().AsDuration(), defaultApprovalTimeout)
	return false, w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		j.ApprovedBy, j.ApprovalComment, j.ApprovalSubject = "", "", is
		j.DeadlineTime = w.now().Add(timeout)
		j.DueTime, j.Error = j.DeadlineTime, store.Problem{}
		if err := w.requireApproval().apply(ctx, tx, j); err != nil {
			return err
		}
		w.auditJob(ctx, tx, j, "job.approval.requested", note{})
		return nil
	})
}

// stepStart begins a try: approval, keys, and then the wait for CSRs.
func (w *work) stepStart(ctx context.Context) (next time.Time, err error) {
	passed, err := w.gate(ctx)
	if err != nil || !passed {
		return next, err
	}
	return next, w.change(ctx, w.begin)
}

// begin makes the keys of a locked job that may run, and has it wait for their CSRs.
func (w *work) begin(ctx context.Context, tx *store.Tx, j *store.Job) error {
	keys, err := w.prepareKeys(ctx, tx, j)
	if err != nil {
		return err
	}
	j.Attempt++
	if j.StartTime.IsZero() {
		j.StartTime = w.now()
	}
	return w.arrange(ctx, tx, j, keys)
}

// prepareKeys makes the job's keys at its first try, and begins those anew that failed.
func (w *work) prepareKeys(ctx context.Context, tx *store.Tx, j *store.Job) ([]*store.Key, error) {
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		for _, agent := range holdersOf(w.rec) {
			keys = append(keys, &store.Key{JobID: j.ID, AgentID: agent, State: store.KeyAwaitingCSR})
		}
		return keys, tx.AddKeys(ctx, keys...)
	}
	if keys, err = w.dropLeft(ctx, tx, j, keys); err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.State != store.KeyFailed {
			continue
		}
		renewed := store.Key{JobID: k.JobID, AgentID: k.AgentID, State: store.KeyAwaitingCSR}
		if k.KeepCSR {
			renewed.CsrPEM, renewed.TaskID = k.CsrPEM, k.TaskID
		}
		*k = renewed
		if err := tx.SaveKey(ctx, k); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// arrange gives every key its next id before anybody is called with it, and the job the state of its slowest key. The
// deadline begins with the state.
func (w *work) arrange(ctx context.Context, tx *store.Tx, j *store.Job, keys []*store.Key) error {
	if len(keys) > 0 && !slices.ContainsFunc(keys, func(k *store.Key) bool { return k.State != store.KeyDone }) {
		return w.end(ctx, tx, j, ending{transition: w.complete(), action: "job.completed"})
	}
	waiting, byCaller := false, false
	for _, k := range keys {
		if k.State != store.KeyAwaitingCSR {
			continue
		}
		if err := w.nextID(ctx, tx, k); err != nil {
			return err
		}
		if k.State == store.KeyAwaitingCSR {
			waiting, byCaller = true, byCaller || k.AgentID == ""
		}
	}
	t, timeout := w.awaitCA(), w.cfg.CATimeout
	if waiting {
		t, timeout = w.awaitCSR(), w.cfg.CSRTimeout
		if byCaller {
			timeout = max(timeout, w.cfg.CallerCSRTimeout)
		}
	}
	if j.State != t.to {
		j.DeadlineTime = w.now().Add(timeout)
	}
	j.DueTime = w.now()
	return t.apply(ctx, tx, j)
}

// nextID chooses the task of a key without CSR, or the order of one with it.
func (w *work) nextID(ctx context.Context, tx *store.Tx, k *store.Key) error {
	switch {
	case k.CsrPEM != "":
		id, err := newID("ord")
		if err != nil {
			return err
		}
		if k.OrderRequest, err = orderRequest(w.rec.GetCertificate()); err != nil {
			return err
		}
		k.OrderID, k.State = id, store.KeyAwaitingCA
	case k.AgentID != "" && k.TaskID == "":
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("make id: %w", err)
		}
		k.TaskID = id.String()
	default:
		return nil
	}
	return tx.SaveKey(ctx, k)
}

// stepKeys takes each key of the job on: tasks are made, orders are submitted, and what came back is stored.
func (w *work) stepKeys(ctx context.Context) (next time.Time, err error) {
	keys := w.keys
	switch {
	case slices.ContainsFunc(keys, w.left):
		return next, w.arrangeAnew(ctx)
	case slices.ContainsFunc(keys, func(k *store.Key) bool { return k.State == store.KeyAwaitingCSR && k.CsrPEM != "" }):
		// A CSR has come: the last moment before the CA, and so the last look at the approval.
		if passed, err := w.gate(ctx); err != nil || !passed {
			return next, err
		}
		return next, w.arrangeAnew(ctx)
	case slices.ContainsFunc(keys, func(k *store.Key) bool { return k.State == store.KeyAwaitingCSR && k.TaskID == "" && k.AgentID != "" }):
		return next, w.arrangeAnew(ctx)
	}
	return w.callPeers(ctx, keys)
}

// callPeers makes the calls of all keys; each may be repeated. One that cannot be made does not hold up the others.
func (w *work) callPeers(ctx context.Context, keys []*store.Key) (next time.Time, err error) {
	var late *postponed
	next = w.now().Add(lookAgainCSR)
	for i, k := range keys {
		var err error
		switch {
		case k.State == store.KeyAwaitingCSR && k.AgentID != "":
			err = w.createTask(ctx, k)
		case k.State == store.KeyAwaitingCA:
			next = w.now().Add(lookAgainAtCA(w.now().Sub(w.job.StartTime)))
			if i == len(keys)-1 && late == nil && w.job.Error.Reason == "" {
				w.backAt = next
			}
			err = w.submit(ctx, k)
		}
		if err != nil && !errors.As(err, &late) {
			return next, err
		}
		if w.job.State == store.Pending || w.job.State.Final() {
			return w.job.DueTime, nil // a key has failed: the job rests, or has ended
		}
	}
	if late != nil {
		return next, late
	}
	return next, w.clearError(ctx)
}

// clearError removes the note of an outage that is over.
func (w *work) clearError(ctx context.Context) error {
	if w.troubled || w.job.Error.Reason == "" || w.job.State != store.AwaitingCSR && w.job.State != store.AwaitingCA || w.job.Error.Reason == caStillPending {
		return nil
	}
	return w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		j.Error = store.Problem{}
		return tx.SaveJob(ctx, j)
	})
}

func (w *work) createTask(ctx context.Context, k *store.Key) error {
	cert := w.rec.GetCertificate()
	_, err := w.inventory.CreateCsrTask(ctx, &inventoryv1.CreateCsrTaskRequest{
		TaskId: k.TaskID, AgentId: k.AgentID, DeadlineTime: timestamppb.New(w.job.DeadlineTime),
		Csr: &agentv1.CreateCsr{CertificateId: cert.GetId(), Names: namesOf(cert), KeyAlgorithm: cert.GetKeyAlgorithm()},
	})
	switch {
	case err == nil:
		return nil
	case undecided(err):
		return &postponed{fmt.Errorf("create CSR task: %w", err)}
	default:
		return w.keyFailed(ctx, k, failure{problem: problem(err), permanent: errs.IsKind(err, errs.NotFound)})
	}
}

func namesOf(cert *inventoryv1.Certificate) *typev1.Names {
	return &typev1.Names{
		CommonName: cert.GetCommonName(), DnsNames: cert.GetDnsNames(), IpAddresses: cert.GetIpAddresses(),
		EmailAddresses: cert.GetEmailAddresses(), Uris: cert.GetUris(),
	}
}

// submit submits the order of a key, or asks how it stands: the same id is always the same order.
func (w *work) submit(ctx context.Context, k *store.Key) error {
	req, err := orderOf(k, w.rec.GetCertificate())
	if err != nil {
		return err
	}
	req.OrderId, req.CertificateId, req.JobId, req.AgentId, req.CsrPem = k.OrderID, w.job.CertificateID, w.job.ID, k.AgentID, k.CsrPEM
	r, err := w.issuance.SubmitOrder(ctx, req)
	switch {
	case err == nil:
		return w.orderIs(ctx, k, r.GetOrder())
	case undecided(err):
		// It may have arrived. Only the same order id may be asked for again.
		return &postponed{fmt.Errorf("submit order %s: %w", k.OrderID, err)}
	default:
		// Refused before it became an order. A refused CSR is not offered again, anything else is not the CSR's fault.
		return w.keyFailed(ctx, k, failure{problem: problem(err), keepCSR: !errs.IsKind(err, errs.Invalid)})
	}
}

// orderIs stores what an answer says about a key's order.
func (w *work) orderIs(ctx context.Context, k *store.Key, o *issuancev1.Order) error {
	if o.GetId() != k.OrderID {
		return &postponed{errs.New(errs.Internal, "WRONG_ORDER", "asked for order %s, the answer is about %q", k.OrderID, o.GetId())}
	}
	w.troubled = w.troubled || o.GetLastError().GetReason() != ""
	return w.changeKey(ctx, k, func(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key) error {
		was := j.Revision
		if err := w.applyOrder(ctx, tx, j, k, o); err != nil || w.backAt.IsZero() {
			return err
		}
		if k.State == store.KeyIssued && j.State == store.AwaitingCA && j.Revision > was {
			// There is nothing to do until the version is stored, which is told.
			j.DueTime = w.backAt
			tx.GiveBack(j, w.lease)
		}
		return nil
	})
}

// cancelTask takes back a task of a job that has ended.
func (c *Core) cancelTask(ctx context.Context, l lease.Lease) error {
	_, err := c.inventory.CancelTask(ctx, &inventoryv1.CancelTaskRequest{TaskId: l.ID})
	if err != nil && !errs.IsKind(err, errs.NotFound) {
		return fmt.Errorf("cancel task: %w", err)
	}
	return c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.DeleteLease(ctx, c.store.Cancellations(), l) })
}

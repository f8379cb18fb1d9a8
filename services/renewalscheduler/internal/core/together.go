package core

import (
	"context"
	"errors"
	"fmt"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// togetherMost is how many jobs or plans share a transaction at most.
const togetherMost = 100

// together is what workers on many jobs ask and write at the same time. What a worker asks is read for all who ask by then, and what it
// writes shares a transaction with what others write: each keeps its own compare-and-set, and when the transaction fails over one of
// them, each is written alone.
type together struct {
	jobs     *batch.Reads[string, seenJob]
	records  *batch.Reads[string, *inventoryv1.CertificateRecord]
	profiles *batch.Reads[string, *issuancev1.Profile]
	changes  *batch.Writes[edit, seenJob]
	starts   *batch.Writes[start, bool]
	releases *batch.Writes[store.Release, struct{}]
}

// seenJob is a job with its keys.
type seenJob struct {
	job  *store.Job
	keys []*store.Key
	// givenBack: the change that made it so has given it back.
	givenBack bool
}

// edit is a change of one job that is as its worker last saw it. It may be made more than once until it is stored, and so begins with
// what the transaction has.
type edit struct {
	ctx  context.Context //nolint:containedctx // whom the change is for: it goes into the events
	seen *store.Job
	make func(ctx context.Context, tx *store.Tx, j *store.Job) error
}

// start is a due plan that is to get its job.
type start struct {
	lease  lease.Lease
	record *inventoryv1.CertificateRecord
	// free: the profile asks for no approval, so that the job begins as it is opened.
	free bool
}

func newTogether(c *Core) *together {
	return &together{
		jobs: batch.NewReads(batch.ReadsConfig{}, c.readJobs), records: batch.NewReads(batch.ReadsConfig{}, c.readRecords),
		profiles: batch.NewReads(batch.ReadsConfig{}, c.readProfiles),
		changes: batch.NewWrites(togetherMost, func(ctx context.Context, list []edit) []batch.Outcome[seenJob] {
			return pg.AllOrEach(list, func(list []edit) ([]batch.Outcome[seenJob], error) { return c.writeEdits(ctx, list) })
		}),
		starts: batch.NewWrites(togetherMost, func(ctx context.Context, list []start) []batch.Outcome[bool] {
			return pg.AllOrEach(list, func(list []start) ([]batch.Outcome[bool], error) { return c.writeStarts(ctx, list) })
		}),
		releases: batch.NewWrites(togetherMost, c.writeReleases),
	}
}

func (c *Core) readJobs(ctx context.Context, ids []string) (map[string]seenJob, error) {
	jobs, err := c.store.JobsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	keys, err := c.store.KeysOf(ctx, jobs)
	if err != nil {
		return nil, err
	}
	out := make(map[string]seenJob, len(jobs))
	for _, j := range jobs {
		out[j.ID] = seenJob{job: j, keys: keys[j.ID]}
	}
	return out, nil
}

func (c *Core) readRecords(ctx context.Context, ids []string) (map[string]*inventoryv1.CertificateRecord, error) {
	r, err := c.inventory.BatchGetCertificates(ctx, &inventoryv1.BatchGetCertificatesRequest{Ids: ids})
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	out := make(map[string]*inventoryv1.CertificateRecord, len(ids))
	for _, rec := range r.GetRecords() {
		out[rec.GetCertificate().GetId()] = rec
	}
	return out, nil
}

func (c *Core) readProfiles(ctx context.Context, ids []string) (map[string]*issuancev1.Profile, error) {
	r, err := c.issuance.BatchGetProfiles(ctx, &issuancev1.BatchGetProfilesRequest{Ids: ids})
	if err != nil {
		return nil, fmt.Errorf("read profiles: %w", err)
	}
	out := make(map[string]*issuancev1.Profile, len(ids))
	for _, p := range r.GetProfiles() {
		out[p.GetId()] = p
	}
	return out, nil
}

// writeEdits makes changes in one transaction. A job that has moved on fails alone, before anything of it was changed.
func (c *Core) writeEdits(ctx context.Context, list []edit) (out []batch.Outcome[seenJob], err error) {
	certificates := make([]string, 0, len(list))
	for _, e := range list {
		certificates = append(certificates, e.seen.CertificateID)
	}
	err = c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error {
		out = make([]batch.Outcome[seenJob], len(list))
		if err := tx.Hold(ctx, certificates...); err != nil {
			return err
		}
		for i, e := range list {
			j, err := tx.LockJob(ctx, e.seen.ID)
			if err != nil {
				return err
			}
			if j.Revision != e.seen.Revision {
				out[i].Err = errGone
				continue
			}
			if err := e.make(context.WithoutCancel(e.ctx), tx, j); err != nil {
				return pg.OfItem(err)
			}
			if j.Revision != e.seen.Revision {
				tx.Changed(store.Jobs)
			}
			out[i].Value.job, out[i].Value.givenBack = j, tx.GivenBack(j.ID)
			if out[i].Value.keys, err = tx.Keys(ctx, j.ID); err != nil {
				return err
			}
		}
		return nil
	})
	return out, ofItem(err)
}

// writeStarts opens the jobs of plans whose leases hold, in one transaction.
func (c *Core) writeStarts(ctx context.Context, list []start) (out []batch.Outcome[bool], err error) {
	leases := make([]lease.Lease, 0, len(list))
	for _, s := range list {
		leases = append(leases, s.lease)
	}
	err = c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error {
		out = make([]batch.Outcome[bool], len(list))
		held, err := tx.LeasedPlans(ctx, leases)
		if err != nil {
			return err
		}
		if err := tx.Hold(ctx, held...); err != nil {
			return err
		}
		holds := make(map[string]bool, len(held))
		for _, id := range held {
			holds[id] = true
		}
		for i, s := range list {
			if !holds[s.lease.ID] {
				out[i].Err = fmt.Errorf("hold plan %s: %w", s.lease.ID, lease.ErrLost)
				continue
			}
			if out[i].Value, err = c.startPlan(ctx, tx, s); err != nil {
				return pg.OfItem(err)
			}
		}
		return nil
	})
	return out, ofItem(err)
}

// ofItem marks what the store says of a row that is not as it was.
func ofItem(err error) error {
	for _, of := range []error{store.ErrChanged, store.ErrOpen, store.ErrNotFound, store.ErrExists} {
		if errors.Is(err, of) {
			return pg.OfItem(err)
		}
	}
	return err
}

func (c *Core) writeReleases(ctx context.Context, list []store.Release) []batch.Outcome[struct{}] {
	out := make([]batch.Outcome[struct{}], len(list))
	err := c.store.ReleaseJobs(ctx, list)
	for i := range out {
		out[i].Err = err
	}
	return out
}

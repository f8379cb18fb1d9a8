package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/tick"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

const (
	// issueTimeout bounds the creation and the issuance, cleanAllTimeout what follows in any case.
	issueTimeout    = 2 * time.Minute
	cleanAllTimeout = 3 * time.Minute
	// createRate is how many certificates are created a second: creation is not what is measured.
	createRate = 20
	// issueAtOnce is how many CSRs are under way to the server at once.
	issueAtOnce = 16
	// lookPause is between two looks at the jobs.
	lookPause = 100 * time.Millisecond
	// localIssuer is the type of certctl's own CA.
	localIssuer = "local"
)

// benchWrite has certificates issued. Each is a smoke of its own, which knows how to create, revoke and archive.
type benchWrite struct {
	*bench
	out   *benchIssued
	certs []*benchCert
	byID  map[string]*benchCert
	// workers are sessions of which each does one thing at a time.
	workers chan *session
	refused atomic.Int64
	latency *load.Histogram
}

// benchCert is one certificate.
type benchCert struct {
	smoke

	mu      sync.Mutex
	sent    time.Time // when its CSR was sent first
	waiting bool      // for its CSR
	seen    time.Time // when its job was seen to be done
}

// issue measures issuance, and cleans up in any case.
func (b *bench) issue(ctx context.Context) error {
	w := b.newWrite()
	b.report.Issuance = w.out
	limited, cancel := context.WithTimeoutCause(ctx, issueTimeout, errUnfinished)
	defer cancel()
	err := w.measure(limited)
	if errors.Is(context.Cause(limited), errUnfinished) {
		err = &Failure{Message: fmt.Sprintf("%d of %d were issued within %s", w.out.Issued, w.out.Created, issueTimeout),
			Hint: "see what the first waits for: certctl certificates explain " + w.certs[0].id, Code: exitTimeout, cause: err}
	}
	if err != nil {
		w.out.Error = b.explain(err).Error()
	}
	w.out.Latency = w.latency.Latency()
	left := w.clean(ctx)
	w.out.Refused = int(w.refused.Load())
	return errors.Join(err, left)
}

// mayIssue refuses to have other CAs than certctl's own issue, unless that was said.
func (b *bench) mayIssue(ctx context.Context) error {
	var resp *issuancev1.GetIssuerResponse
	err := b.until(ctx, func(ctx context.Context) (done bool, err error) {
		resp, err = issuancev1.NewIssuerServiceClient(b.conn).GetIssuer(ctx, &issuancev1.GetIssuerRequest{Id: b.options.issuer})
		return err == nil, err
	})
	if err != nil {
		return b.hinted(err, "see what there is: certctl issuers list")
	}
	if kind := resp.GetIssuer().GetType(); kind != localIssuer && !b.options.yes {
		return usagef("issuer %s is of type %s: %d certificates from it may cost money and count against its limits; say --yes if that is meant",
			b.options.issuer, kind, b.options.certificates)
	}
	return nil
}

func (b *bench) newWrite() *benchWrite {
	name := "bench-" + strings.ToLower(rand.Text()[:10])
	w := &benchWrite{
		bench: b, out: &benchIssued{Name: name, Issuer: b.options.issuer}, byID: make(map[string]*benchCert), latency: load.NewHistogram(),
		workers: make(chan *session, issueAtOnce),
	}
	for range issueAtOnce {
		w.workers <- b.sibling()
	}
	for i := range b.options.certificates {
		c := &benchCert{smoke: smoke{issuer: b.options.issuer, profile: b.options.profile, id: fmt.Sprintf("%s-%d", name, i+1)}}
		c.host = c.id + "." + strings.TrimPrefix(b.options.domain, ".")
		w.certs = append(w.certs, c)
		w.byID[c.id] = c
	}
	return w
}

// sibling is a session with the same connection, for work beside: a session's state is for one thing at a time.
func (s *session) sibling() *session {
	silent := &cobra.Command{}
	silent.SetOut(io.Discard)
	silent.SetErr(io.Discard)
	other := &session{cmd: silent, cfg: s.cfg, access: s.access, format: s.format, conn: s.conn, handshake: s.handshake, limit: s.limit, quiet: true}
	other.answered.Store(s.spoke())
	return other
}

func (w *benchWrite) measure(ctx context.Context) error {
	w.note("creates %d certificates named %s-…", len(w.certs), w.out.Name)
	made := load.Run(ctx, load.Plan{Rate: createRate, Duration: time.Duration(len(w.certs)) * time.Second / createRate, Workers: issueAtOnce},
		func(ctx context.Context, _, n int) error {
			if n >= len(w.certs) {
				return nil
			}
			return w.with(ctx, w.certs[n], func(ctx context.Context, c *benchCert) error {
				_, err := c.create(ctx)
				return err
			})
		})
	w.out.Created = made.Planned - made.Failed
	if err := errors.Join(made.Err, ctx.Err()); err != nil {
		return err
	}
	if err := w.untilAll(ctx, func(c *benchCert) bool { return c.waiting }); err != nil {
		return err
	}
	w.note("has them issued")
	return w.submitAll(ctx)
}

// submitAll sends all CSRs, and looks at the jobs until all are done.
func (w *benchWrite) submitAll(ctx context.Context) error {
	begin := time.Now()
	sending, during := errgroup.WithContext(ctx)
	sending.SetLimit(issueAtOnce + 1)
	sending.Go(func() error { return w.untilAll(during, func(c *benchCert) bool { return !c.seen.IsZero() }) })
	for _, c := range w.certs {
		sending.Go(func() error {
			return w.with(during, c, func(ctx context.Context, c *benchCert) error {
				c.mu.Lock()
				if c.sent.IsZero() {
					c.sent = time.Now()
				}
				c.mu.Unlock()
				return c.submit(ctx)
			})
		})
	}
	err := sending.Wait()
	last := begin
	for _, c := range w.certs {
		if !c.seen.IsZero() {
			w.out.Issued++
			w.latency.Add(c.seen.Sub(c.sent))
			if c.seen.After(last) {
				last = c.seen
			}
		}
	}
	w.out.Seconds = last.Sub(begin).Seconds()
	if w.out.Issued > 0 {
		w.out.PerSecond = float64(w.out.Issued) / w.out.Seconds
	}
	return err
}

// with does something for a certificate, in a session that nobody else uses. What the rate limit refuses is done again.
func (w *benchWrite) with(ctx context.Context, c *benchCert, do func(context.Context, *benchCert) error) error {
	s := <-w.workers
	defer func() { w.workers <- s }()
	c.session = s
	return w.patiently(ctx, func() error { return do(ctx, c) })
}

func (w *benchWrite) patiently(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errs.IsKind(err, errs.ResourceExhausted) {
			return err
		}
		w.refused.Add(1)
		if err := tick.Wait(ctx, patience(w.cfg.Poll, err)); err != nil {
			return err
		}
	}
}

// untilAll looks at the newest jobs until all certificates are as they should be. One look is for all of them: a question for each
// would meet the rate limit of the key first.
func (w *benchWrite) untilAll(ctx context.Context, is func(*benchCert) bool) error {
	for {
		if err := w.patiently(ctx, func() error { return w.look(ctx) }); err != nil {
			return err
		}
		open := 0
		for _, c := range w.certs {
			c.mu.Lock()
			if !is(c) {
				open++
			}
			c.mu.Unlock()
		}
		if open == 0 {
			return nil
		}
		if err := tick.Wait(ctx, lookPause); err != nil {
			return err
		}
	}
}

// look notes how the jobs are; one that has failed, or waits for somebody, is an error.
func (w *benchWrite) look(ctx context.Context) error {
	size := int32(min(maxPage, 2*len(w.certs)+100))
	resp, err := schedulerv1.NewJobServiceClient(w.conn).ListJobs(ctx, &schedulerv1.ListJobsRequest{Type: []schedulerv1.Job_Type{schedulerv1.Job_ISSUE}, PageSize: size})
	if err != nil {
		return err
	}
	now := time.Now()
	for _, j := range resp.GetJobs() {
		c := w.byID[j.GetCertificateId()]
		if c == nil {
			continue
		}
		if err := c.observe(j, now); err != nil {
			return err
		}
	}
	return nil
}

// observe takes what a look has shown.
func (c *benchCert) observe(j *schedulerv1.Job, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch j.GetStatus() {
	case schedulerv1.Job_AWAITING_CSR:
		c.waiting = true
	case schedulerv1.Job_COMPLETED:
		if c.seen.IsZero() {
			c.seen = now
		}
	case schedulerv1.Job_AWAITING_APPROVAL:
		return &Failure{Message: "the profile has somebody approve each certificate: nothing can be measured", Hint: "name another one with --profile", Code: exitError}
	case schedulerv1.Job_FAILED, schedulerv1.Job_CANCELLED, schedulerv1.Job_EXPIRED:
		return jobFailure(j)
	default:
	}
	return nil
}

// clean revokes and archives all that may be there, whatever becomes of one of them. After an interrupt it does not take long.
func (w *benchWrite) clean(ctx context.Context) error {
	limit := cleanAllTimeout
	if ctx.Err() != nil {
		limit = cleanTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	w.note("revokes and archives them")
	problems := []error{w.versions(ctx)}
	var mu sync.Mutex
	var cleaning errgroup.Group
	cleaning.SetLimit(issueAtOnce / 2) // beside what others do
	for _, c := range w.certs {
		if !c.asked {
			continue
		}
		cleaning.Go(func() error {
			revoked, archived, err := w.cleanOne(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			w.out.Revoked, w.out.Archived = w.out.Revoked+revoked, w.out.Archived+archived
			problems = append(problems, err)
			return nil
		})
	}
	_ = cleaning.Wait() // none of them ends the others
	if err := errors.Join(problems...); err != nil {
		w.report.note("not all was cleaned up: %v; see what is left: certctl certificates list --name %s, and revoke and archive it", firstLine(err), w.out.Name)
		return &Failure{Message: "not all was cleaned up", Hint: "see what is left: certctl certificates list --name " + w.out.Name, Code: exitError, cause: err}
	}
	return nil
}

// versions finds out which certificates have been issued, be it late.
func (w *benchWrite) versions(ctx context.Context) error {
	return w.patiently(ctx, func() error {
		resp, err := inventoryv1.NewCertificateServiceClient(w.conn).ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{Name: w.out.Name, PageSize: maxPage})
		for _, cert := range resp.GetCertificates() {
			if c := w.byID[cert.GetId()]; c != nil {
				c.version = cert.GetCurrentVersion()
			}
		}
		return err
	})
}

func (w *benchWrite) cleanOne(ctx context.Context, c *benchCert) (revoked, archived int, err error) {
	var problems []error
	if c.version > 0 {
		err := w.with(ctx, c, func(ctx context.Context, c *benchCert) error {
			_, err := c.revoke(ctx)
			return err
		})
		if err == nil {
			revoked++
		}
		problems = append(problems, err)
	}
	err = w.with(ctx, c, func(ctx context.Context, c *benchCert) error {
		_, err := c.archive(ctx)
		return err
	})
	if err == nil {
		archived++
	}
	return revoked, archived, errors.Join(append(problems, err)...)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

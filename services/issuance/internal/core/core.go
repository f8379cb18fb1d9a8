// Package core decides what issuance does: which requests are allowed, how an order moves from intent to result, what a
// reply that was lost means, when a CRL is due. It knows no gRPC and no SQL; all that it stores goes through package
// store, and all that other services must learn goes into the outbox in the transaction that made it true.
package core

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// DefaultCallTimeout bounds one call to a CA.
const DefaultCallTimeout = 30 * time.Second

// CallsPerIssuer is how many calls to one CA that answers later are under way at a time: such a CA may hang, and then
// it must not take what others need.
const CallsPerIssuer = 4

// Config bounds the work with CAs. Zero fields take the default.
type Config struct {
	CallTimeout    time.Duration // one call to a CA; 30 s
	OrderDeadline  time.Duration // how long a CA that is away is tried; 24 h
	ReconcileDelay time.Duration // rest after a lost reply, so that a slow CA has finished; 1 min
	CRLValidity    time.Duration // from this update to the next; 24 h

	// BootstrapLocalIssuer makes iss-local on the first start.
	BootstrapLocalIssuer bool
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.CallTimeout, DefaultCallTimeout},
		{&c.OrderDeadline, 24 * time.Hour},
		{&c.ReconcileDelay, time.Minute},
		{&c.CRLValidity, 24 * time.Hour},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
}

// leaseFor outlives a call by far, so that an expired lease means that its holder is not calling any more.
func (c *Config) leaseFor() time.Duration { return 2*c.CallTimeout + 5*time.Second }

// repeatableLease is how long an order waits whose submitter has died, where submitting it twice does no harm.
const repeatableLease = 10 * time.Second

// orderLease is the lease of an intent. Where the request fixes the result, an order may be submitted again while the
// first call still runs, so there is no call to be outlived, and a process that dies holds its orders up for less.
func (c *Config) orderLease(in *instance) time.Duration {
	if in.caps.SerialNumber && !in.caps.Async {
		return min(repeatableLease, c.leaseFor())
	}
	return c.leaseFor()
}

// References tells how many certificates use an issuer or a profile. inventory knows.
type References interface {
	CountIssuer(ctx context.Context, id string) (int, error)
	CountProfile(ctx context.Context, id string) (int, error)
}

// Poller watches pending orders. asyncpoller does.
type Poller interface {
	PollNow(ctx context.Context, orderID string) error
	CancelPoll(ctx context.Context, orderID string) error
	// Polls gives the last questions to the CA about an order, newest first.
	Polls(ctx context.Context, orderID string) ([]*issuancev1.OrderPoll, error)
}

// Deps are what core works with.
type Deps struct {
	DB         *pg.DB
	Log        *zap.Logger
	Box        *secretbox.Box
	Types      issuer.Types
	References References
	Poller     Poller
	// Accounts are the guards of the CA accounts that this process calls; nil: each issuer has its own.
	Accounts *account.Accounts
	// Checkpoint is called at the labelled points of an order's way; a test that returns an error there has killed the
	// process: nothing more is done. nil: never.
	Checkpoint func(point, orderID string) error
	Now        func() time.Time // nil: time.Now
}

// Core holds the decisions of the service. It is safe for concurrent use.
type Core struct {
	cfg       Config
	deps      Deps
	log       *zap.Logger
	instances *instances
	known     *known
	journal   *journal
	crls      singleflight.Group
	rests     *rests
	issuers   *page.Sorting
	orders    *page.Sorting
	profiles  *page.Sorting
	crlKick   *tick.Kicker
	orderKick *tick.Kicker
	turns     *turns
	// saidResealed is set when operators were told that older encryption keys may go.
	saidResealed atomic.Bool

	checkpoint func(point, orderID string) error
}

// New checks its parts and makes the core.
func New(cfg Config, deps Deps) (*Core, error) {
	cfg.setDefaults()
	if deps.DB == nil || deps.Box == nil || len(deps.Types) == 0 || deps.References == nil || deps.Poller == nil {
		return nil, errors.New("issuance: database, secret box, issuer types and peers are needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = zap.NewNop()
	}
	c := &Core{
		cfg: cfg, deps: deps, log: deps.Log, known: newKnown(),
		rests: newRests(), crlKick: tick.NewKicker(), orderKick: tick.NewKicker(), turns: newTurns(CallsPerIssuer),
		checkpoint: deps.Checkpoint,
	}
	c.journal = newJournal(c)
	if c.checkpoint == nil {
		c.checkpoint = func(string, string) error { return nil }
	}
	c.instances = newInstances(c.build, cfg.CallTimeout)
	return c, c.sortings()
}

func (c *Core) sortings() (err error) {
	id := page.Column{SQL: "o.id", Kind: page.Text}
	c.orders, err = page.NewSorting(id, "create_time desc", page.Column{Field: "create_time", SQL: "o.create_time", Kind: page.Time})
	if err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	id.SQL = "i.id"
	c.issuers, err = page.NewSorting(id, "create_time desc", page.Column{Field: "create_time", SQL: "i.create_time", Kind: page.Time},
		page.Column{Field: "name", SQL: "i.name", Kind: page.Text})
	if err != nil {
		return fmt.Errorf("issuers: %w", err)
	}
	id.SQL = "p.id"
	c.profiles, err = page.NewSorting(id, "create_time desc", page.Column{Field: "create_time", SQL: "p.create_time", Kind: page.Time},
		page.Column{Field: "name", SQL: "p.name", Kind: page.Text})
	if err != nil {
		return fmt.Errorf("profiles: %w", err)
	}
	return nil
}

// now has Postgres's precision, so that what is stored and read again is the same.
func (c *Core) now() time.Time { return c.deps.Now().UTC().Truncate(time.Microsecond) }

// Now is the time that decisions are made by.
func (c *Core) Now() time.Time { return c.now() }

// DB gives the database, for what runs around a change (package mutation).
func (c *Core) DB() *pg.DB { return c.deps.DB }

// CRLKick tells when a CRL should be made at once.
func (c *Core) CRLKick() <-chan struct{} { return c.crlKick.C() }

// OrderKick tells when an order was left to the reconciler and is due at once.
func (c *Core) OrderKick() <-chan struct{} { return c.orderKick.C() }

// KickCRLs makes the CRLs that are stale due at once.
func (c *Core) KickCRLs() { c.crlKick.Kick() }

// newID makes an identifier of a kind.
func newID(prefix string) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make id: %w", err)
	}
	return prefix + "-" + id.String(), nil
}

// emit puts events into the outbox, in the transaction of the change.
func emit(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	return outbox.Add(ctx, tx, events...)
}

// Collections are what the service keeps revisions of.
func Collections() []string { return []string{collectionIssuers, collectionOrders, collectionProfiles} }

const (
	collectionIssuers  = "issuers"
	collectionOrders   = "orders"
	collectionProfiles = "profiles"
)

// Stuck counts the rows that should have been worked on long ago.
func (c *Core) Stuck(ctx context.Context) (int, error) { return store.CountStuck(ctx, c.deps.DB.Pool) }

// Package issue measures issuance: it places orders at the issuance service as the renewal scheduler does, and counts an order as done
// when its version is in the inventory and its audit event in the chain.
package issue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/deploy/bench/internal/gauge"
	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/peertls"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// scheduler is who may place orders.
const scheduler = "renewalscheduler"

// The issuer and the profile that every installation has.
const (
	issuerID  = "iss-local"
	profileID = "prof-default"
	policyID  = "pol-default"
)

// Config is what to measure.
type Config struct {
	// Issuance is the address of the service, host:port.
	Issuance string
	// InternalSecret is CERTCTL_INTERNAL_SECRET of the installation.
	InternalSecret secretbox.Secret
	// DatabaseURL is that of a superuser: certificates are made and events counted past the services.
	DatabaseURL string
	// Duration is how long orders are placed; 0 means a minute.
	Duration time.Duration
	// InFlight is how many are under way at once; 0 means 64.
	InFlight int
	// Rate is the number of orders in a second; 0 places the next when one is answered.
	Rate float64
	// Most is how many certificates are prepared: the end of a run that is quicker than it was thought. 0 means 1,500 for each
	// second, or a tenth more than Rate.
	Most int
	// Processes are those whose CPU time is read.
	Processes gauge.Processes
	// Patience is how long the last events may take after the last order; 0 means a minute.
	Patience time.Duration
	// Settle is how long the counters of Postgres are waited for: a backend keeps to itself what it has counted for up to ten
	// seconds. 0 means 12 s.
	Settle time.Duration
}

func (c *Config) setDefaults() {
	if c.Duration <= 0 {
		c.Duration = time.Minute
	}
	if c.InFlight <= 0 {
		c.InFlight = 64
	}
	if c.Patience <= 0 {
		c.Patience = time.Minute
	}
	if c.Settle <= 0 {
		c.Settle = 12 * time.Second
	}
	if c.Most > 0 {
		return
	}
	perSecond := 1500.0
	if c.Rate > 0 {
		perSecond = 1.1 * c.Rate
	}
	c.Most = int(perSecond*c.Duration.Seconds()) + c.InFlight
}

// Result is what was measured.
type Result struct {
	// Orders are those that were answered as issued, Done those of them whose version and whose audit events are stored.
	Orders int `json:"orders"`
	Failed int `json:"failed"`
	Done   int `json:"done"`
	// Elapsed is from the first order to the last audit event, in seconds; Drain is the part of it after the last answer.
	Elapsed float64 `json:"elapsed_seconds"`
	Drain   float64 `json:"drain_seconds"`
	// PerSecond is Done by Elapsed.
	PerSecond float64 `json:"certificates_per_second"`
	// Latency is that of an order, from its intended start to its answer.
	Latency load.Latency `json:"latency_ms"`
	// CPU are seconds of CPU per certificate, by process.
	CPU map[string]float64 `json:"cpu_seconds_per_certificate"`
	// Statements and Transactions are those of all services per certificate. BEGIN and COMMIT count as statements too in All.
	// Transactions are all that Postgres has committed, those in which it wakes listeners included, and in a short run the idle
	// loops of the services.
	Statements   Statements `json:"statements_per_certificate"`
	Transactions float64    `json:"transactions_per_certificate"`
	// Signings is how often one core signs with ECDSA P-256 in a second, measured before the run; Ratio is PerSecond by it.
	Signings float64 `json:"raw_signings_per_second"`
	Ratio    float64 `json:"ratio_to_raw_signing"`
	// Err is one of the errors of failed orders.
	Err string `json:"error,omitempty"`
}

// Run prepares certificates, places orders for them, waits for the last event, and counts.
func Run(ctx context.Context, cfg Config) (Result, error) {
	cfg.setDefaults()
	signings, err := limit.Sign(ctx, time.Second)
	if err != nil {
		return Result{}, err
	}
	requests, err := prepare(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	conn, err := dial(cfg)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = conn.Close() }()
	m, err := begin(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	defer m.close(ctx)
	placed := place(ctx, cfg, issuancev1.NewIssuanceInternalServiceClient(conn), requests)
	r, err := m.end(ctx, requests[:min(placed.Planned, len(requests))])
	if err != nil {
		return Result{}, err
	}
	r.Orders, r.Failed, r.Latency = placed.Planned-placed.Failed, placed.Failed, placed.Latency
	r.Drain = max(r.Elapsed-placed.Elapsed.Seconds(), 0)
	r.Signings, r.Ratio = signings.Throughput, r.PerSecond/signings.Throughput
	if placed.Err != nil {
		r.Err = placed.Err.Error()
	}
	return r, nil
}

func dial(cfg Config) (*grpc.ClientConn, error) {
	tlsConfig, err := peertls.Client(cfg.InternalSecret, "issuance")
	if err != nil {
		return nil, err
	}
	return rpc.Dial(rpc.ClientConfig{
		Service: scheduler, Target: "dns:///" + cfg.Issuance, Peer: "issuance", InternalSecret: cfg.InternalSecret, TLS: tlsConfig,
		DefaultTimeout: cfg.Patience,
	})
}

// errPrepared says that the certificates were used up before the time was over.
var errPrepared = errors.New("all prepared certificates are issued: Config.Most is too small")

func place(ctx context.Context, cfg Config, client issuancev1.IssuanceInternalServiceClient, requests []*issuancev1.SubmitOrderRequest) load.Result {
	plan := load.Plan{Rate: cfg.Rate, Duration: cfg.Duration, Workers: cfg.InFlight}
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	return load.Run(ctx, plan, func(ctx context.Context, _, n int) error {
		if n >= len(requests) {
			enough()
			return errPrepared
		}
		// The end of the time cancels no order: what was placed is to be counted.
		answer, err := client.SubmitOrder(context.WithoutCancel(ctx), requests[n])
		if err != nil {
			return fmt.Errorf("place order: %w", err)
		}
		if s := answer.GetOrder().GetStatus(); s != issuancev1.Order_ISSUED {
			return fmt.Errorf("order %s is %s: %s", requests[n].GetOrderId(), s, answer.GetOrder().GetLastError().GetMessage())
		}
		return nil
	})
}

// measure is a run that is being measured.
type measure struct {
	cfg   Config
	db    *pgx.Conn
	begin time.Time
	cpu   gauge.CPU
	count counts
	own   int64 // transactions of this connection since begin
}

func begin(ctx context.Context, cfg Config) (*measure, error) {
	db, err := pgx.Connect(ctx, cfg.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	m := &measure{cfg: cfg, db: db}
	if m.count, err = m.read(ctx); err != nil {
		m.close(ctx)
		return nil, err
	}
	if m.cpu, err = cfg.Processes.CPU(); err != nil {
		m.close(ctx)
		return nil, err
	}
	m.begin, m.own = time.Now(), 0
	return m, nil
}

func (m *measure) close(ctx context.Context) { _ = m.db.Close(context.WithoutCancel(ctx)) }

// end waits for the last event and takes the measures.
func (m *measure) end(ctx context.Context, requests []*issuancev1.SubmitOrderRequest) (Result, error) {
	if err := m.drained(ctx); err != nil {
		return Result{}, err
	}
	r := Result{Elapsed: time.Since(m.begin).Seconds(), CPU: map[string]float64{}}
	cpu, err := m.cfg.Processes.CPU()
	if err != nil {
		return Result{}, err
	}
	if r.Done, err = m.done(ctx, requests); err != nil {
		return Result{}, err
	}
	if err := tick.Wait(ctx, m.cfg.Settle); err != nil {
		return Result{}, err
	}
	count, err := m.read(ctx)
	if err != nil {
		return Result{}, err
	}
	r.PerSecond = float64(r.Done) / r.Elapsed
	per := func(n float64) float64 { return n / float64(max(r.Done, 1)) }
	for name, seconds := range cpu.Since(m.cpu).Seconds() {
		r.CPU[name] = per(seconds)
	}
	r.Statements = count.statements.minus(m.count.statements).per(r.Done)
	r.Transactions = per(float64(count.transactions - m.count.transactions - m.own))
	return r, nil
}

func names(n int, run string) *typev1.Names {
	host := fmt.Sprintf("%s-%d.bench.example.com", run, n)
	return &typev1.Names{CommonName: host, DnsNames: []string{host}}
}

package tick

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/run"
)

const (
	defaultSpread = 2 * time.Second
	defaultDrain  = 10 * time.Second
	// maxDefaultBudget bounds a run of a loop that names no budget: a daily loop must not be allowed to hang for a day.
	maxDefaultBudget = 10 * time.Minute
)

// Result is what a run of a loop did.
type Result struct {
	// Rows is how many rows the run worked on.
	Rows int
	// Note is for operators, such as "nothing to do: no notifier is configured".
	Note string
}

// Loop is a piece of work that comes again.
type Loop struct {
	// Name is unique in its group; it is the metrics label.
	Name string
	// Description says in one line what the loop is for.
	Description string
	// Interval is the time between runs when nothing kicks the loop. Each one has DefaultJitter.
	Interval time.Duration
	// Floor is the least time between the starts of two runs, however often the loop is kicked. Zero is none.
	Floor time.Duration
	// Budget bounds one run through its context. Zero means the interval, but at most ten minutes.
	Budget time.Duration
	// Run does the work. It must end soon after its context.
	Run func(ctx context.Context) (Result, error)
	// Kick, when set, starts a run at once. A kick that comes during a run leads to one more run right after it.
	Kick <-chan struct{}
}

func (l Loop) validate() error {
	switch {
	case l.Name == "":
		return errors.New("a loop needs a name")
	case l.Run == nil:
		return fmt.Errorf("loop %s has nothing to run", l.Name)
	case l.Interval <= 0:
		return fmt.Errorf("loop %s: interval must be positive, got %s", l.Name, l.Interval)
	case l.Floor < 0 || l.Budget < 0:
		return fmt.Errorf("loop %s: floor and budget must not be negative", l.Name)
	}
	return nil
}

// State is what a loop has done since the start of the process.
type State struct {
	Name        string
	Description string
	Interval    time.Duration
	Running     bool
	// Runs counts the runs that ended, those with errors and panics included.
	Runs   uint64
	Errors uint64
	Panics uint64
	// LastRun is when the last run ended; zero when there was none.
	LastRun      time.Time
	LastDuration time.Duration
	LastRows     int
	// LastError is the text of the last run's error, empty when it was right.
	LastError string
	// Note is what the last run said about itself.
	Note string
}

// Config sets up a group.
type Config struct {
	// Spread bounds the random wait before each loop's first run. Zero means 2 s.
	Spread time.Duration
	// Drain bounds the wait for running loops when the context ends. Zero means 10 s.
	Drain time.Duration
}

// Deps are what a group works with.
type Deps struct {
	Logger *zap.Logger
	// Registry takes the group's metrics, as one of metrics.New labels them with the service; nil means none.
	Registry prometheus.Registerer
}

// Group runs the loops of a service.
type Group struct {
	cfg     Config
	log     *zap.Logger
	metrics *metrics

	mu      sync.Mutex
	loops   []*loop
	running bool
}

// NewGroup returns a group without loops.
func NewGroup(cfg Config, deps Deps) (*Group, error) {
	if cfg.Spread <= 0 {
		cfg.Spread = defaultSpread
	}
	if cfg.Drain <= 0 {
		cfg.Drain = defaultDrain
	}
	if deps.Logger == nil {
		deps.Logger = zap.NewNop()
	}
	m, err := newMetrics(deps.Registry)
	if err != nil {
		return nil, err
	}
	return &Group{cfg: cfg, log: deps.Logger, metrics: m}, nil
}

// Register adds a loop. All loops are registered before Run.
func (g *Group) Register(l Loop) error {
	if err := l.validate(); err != nil {
		return fmt.Errorf("register loop: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running {
		return fmt.Errorf("register loop %s: the group runs already", l.Name)
	}
	for _, other := range g.loops {
		if other.Name == l.Name {
			return fmt.Errorf("register loop %s: the name is taken", l.Name)
		}
	}
	if l.Budget == 0 {
		l.Budget = min(l.Interval, maxDefaultBudget)
	}
	g.metrics.announce(l.Name)
	g.loops = append(g.loops, &loop{Loop: l, log: g.log.With(zap.String("loop", l.Name)), metrics: g.metrics})
	return nil
}

// States returns what each loop did, in the order of registration.
func (g *Group) States() []State {
	g.mu.Lock()
	loops := g.loops
	g.mu.Unlock()
	out := make([]State, 0, len(loops))
	for _, l := range loops {
		out = append(out, l.snapshot())
	}
	return out
}

// Run runs all loops until ctx ends and then waits for those at work, at most Config.Drain. It returns nil after a clean
// drain, and otherwise an error that names the loops that did not end. It may be called once.
func (g *Group) Run(ctx context.Context) error {
	loops, err := g.begin()
	if err != nil {
		return err
	}
	var eg errgroup.Group
	for _, l := range loops {
		eg.Go(func() error { return l.serve(ctx, g.cfg.Spread) })
	}
	ended := run.Go(eg.Wait)
	select {
	case err := <-ended:
		if err != nil {
			return err
		}
		<-ctx.Done() // a group without loops still lives as long as its service
		return nil
	case <-ctx.Done():
	}
	return g.drain(ended, loops)
}

func (g *Group) begin() ([]*loop, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running {
		return nil, errors.New("run loops: the group runs already")
	}
	g.running = true
	return g.loops, nil
}

func (g *Group) drain(ended <-chan error, loops []*loop) error {
	timer := time.NewTimer(g.cfg.Drain)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
	}
	var left []string
	for _, l := range loops {
		if l.snapshot().Running {
			left = append(left, l.Name)
		}
	}
	return fmt.Errorf("drain loops: still at work after %s: %s", g.cfg.Drain, strings.Join(left, ", "))
}

// initialDelay spreads the first runs, so that a start of many replicas is not one blow on the database.
func initialDelay(interval, spread time.Duration) time.Duration {
	return rand.N(min(interval, spread)) //nolint:gosec // jitter is no secret
}

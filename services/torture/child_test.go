package torture_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// errandVariable tells the test binary that it is a child, and what for.
const errandVariable = "CT_TORTURE_ERRAND"

// exitDied is the status of a child that died where it was told to.
const exitDied = 42

// errand is what a child does: to run the services, or the CAs.
type errand struct {
	DatabaseURL string
	BoxKey      []byte
	// Point and Order are where it dies; empty: nowhere.
	Service, Point, Order string

	CADir, CAAddress string
	Scenario         string
}

// runErrand is the child. It ends with its standard input, so that none is left behind by a test that died.
func runErrand(text string) int {
	var e errand
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return complain(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until it is closed
		cancel()
	}()
	if e.CADir != "" {
		return complain(e.runCAs(ctx))
	}
	return complain(e.runServices(ctx))
}

func complain(err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(os.Stderr, err)
	return 1
}

func (e errand) runCAs(ctx context.Context) error {
	sc, err := casimulator.ParseScenario([]byte(e.Scenario))
	if err != nil {
		return err
	}
	sim, err := casimulator.New(casimulator.Config{Dir: e.CADir, Scenario: sc})
	if err != nil {
		return err
	}
	if _, err := sim.Start(ctx, casimulator.Listen{Address: e.CAAddress}); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(os.Stdout, "up")
	return errors.Join(sim.Wait(), sim.Close())
}

// runServices runs issuance and asyncpoller, and the scheduler that submits what is asked for.
func (e errand) runServices(ctx context.Context) error {
	key, err := secretbox.NewKey(e.BoxKey)
	if err != nil {
		return err
	}
	pc, err := pgxpool.ParseConfig(e.DatabaseURL)
	if err != nil {
		return err
	}
	pc.MaxConns = 4
	db, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return err
	}
	defer db.Close()
	n, err := startNode(ctx, nodeConfig{databaseURL: e.DatabaseURL, boxKey: key, types: types(), events: db, checkpoint: e.die})
	if err != nil {
		return err
	}
	return errors.Join(e.schedule(ctx, db, n), n.stop())
}

// die ends the process where it was told to, without a word.
func (e errand) die(service, point, orderID string) error {
	if e.Service == service && e.Point == point && e.Order == orderID {
		os.Exit(exitDied)
	}
	return nil
}

func (e errand) schedule(ctx context.Context, db *pgxpool.Pool, n *node) error {
	ticker, err := tick.New(often, 0)
	if err != nil {
		return err
	}
	defer ticker.Stop()
	client := issuancev1.NewIssuanceInternalServiceClient(n.scheduler)
	for ctx.Err() == nil {
		wanted, err := read[struct{ Request []byte }](ctx, db, `SELECT i.request FROM torture.intents i
LEFT JOIN issuance.orders o ON o.id = i.order_id WHERE o.id IS NULL ORDER BY i.order_id LIMIT 8`)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for _, w := range wanted {
			r := &issuancev1.SubmitOrderRequest{}
			if err := proto.Unmarshal(w.Request, r); err != nil {
				return err
			}
			_, _ = client.SubmitOrder(ctx, r) // the scheduler asks again
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return nil
}

// scenarioText is faults as a file has them.
func scenarioText(t testing.TB, faults []casimulator.Fault) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"unlimited": true, "faults": faults})
	require.NoError(t, err)
	return string(text)
}

// child is a process.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // once it has ended
}

// start starts a child.
func start(t testing.TB, e errand) *child {
	t.Helper()
	text, err := json.Marshal(e)
	require.NoError(t, err)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	cmd.Env = append(os.Environ(), errandVariable+"="+string(text), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	_, err = cmd.StdinPipe() // it is closed with this process
	require.NoError(t, err)
	c := &child{t: t, cmd: cmd, ended: make(chan struct{})}
	require.NoError(t, cmd.Start())
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(c.kill)
	return c
}

// kill is kill -9.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.ended
}

func (c *child) running() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// died tells whether it ended where it was told to.
func (c *child) died() bool {
	var exit *exec.ExitError
	return !c.running() && errors.As(c.err, &exit) && exit.ExitCode() == exitDied
}

// services starts a child that runs the services and dies at a point.
func (w *world) services(d death, orderID string) *child {
	w.t.Helper()
	return start(w.t, errand{DatabaseURL: w.url, BoxKey: w.rawKey, Service: d.service, Point: d.point, Order: orderID})
}

// intend writes down what is asked for.
func (w *world) intend(r *issuancev1.SubmitOrderRequest) {
	w.t.Helper()
	raw, err := proto.Marshal(r)
	require.NoError(w.t, err)
	w.exec(`INSERT INTO torture.intents (order_id, request) VALUES ($1, $2)`, r.GetOrderId(), raw)
}

// buried lets the leases run out that a dead process held: of the orders, the polls, and the outbox.
func (w *world) buried() {
	w.t.Helper()
	w.exec(`UPDATE issuance.orders SET lease_until = now(), due_time = LEAST(due_time, now()) WHERE lease_id IS NOT NULL`)
	w.exec(`UPDATE asyncpoller.polls SET lease_until = now() WHERE lease_id IS NOT NULL`)
	w.exec(`UPDATE issuance.outbox_leases SET lease_until = now()`)
}

// pass lets time pass: what is due later is due now. Watches only if that is wanted.
func (w *world) pass(polls bool) {
	w.t.Helper()
	w.exec(`UPDATE issuance.orders SET due_time = now() WHERE due_time > now() AND lease_id IS NULL AND status IN ('CREATED', 'SUBMITTING', 'UNKNOWN')`)
	if polls {
		w.exec(`UPDATE asyncpoller.polls SET due_time = now() WHERE state = 'WAITING' AND due_time > now()`)
	}
}

// rest tells whether all is final, told and written.
func (w *world) rest() bool {
	w.t.Helper()
	return w.one(`SELECT (SELECT count(*) FROM torture.intents i LEFT JOIN issuance.orders o ON o.id = i.order_id WHERE o.id IS NULL OR o.due_time IS NOT NULL)
 + (SELECT count(*) FROM asyncpoller.polls WHERE state IN ('WAITING', 'LEASED')) + (SELECT count(*) FROM issuance.outbox)`) == 0
}

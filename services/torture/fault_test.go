package torture_test

import (
	"context"
	"fmt"
	"path"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// arm has statements fail.
func (p *play) arm(s *script) {
	p.t.Helper()
	for n, st := range s.statements {
		counter := fmt.Sprintf("torture.counter_%d_%d", s.seed, n)
		p.exec("CREATE SEQUENCE " + counter)
		p.exec(`INSERT INTO torture.broken (order_id, relation, operation, nth, code, counter) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
			s.orders[len(s.orders)-1], st.relation, st.operation, st.nth, st.code, counter)
	}
}

// scenario has the faults of all scripts, and some of those operations that are about no certificate.
func (p *play) scenario(seed uint64) casimulator.Scenario {
	sc := casimulator.Scenario{Unlimited: true, Seed: seed}
	for _, s := range p.scripts {
		sc.Faults = append(sc.Faults, s.faults...)
	}
	add := func(operation string, kinds ...casimulator.Kind) {
		for _, kind := range kinds {
			sc.Faults = append(sc.Faults, casimulator.Fault{Operation: operation, Kind: kind, Probability: 0.02, Times: 1 + len(p.scripts)/50})
		}
	}
	for _, operation := range []string{"list", "login", "profiles", "chain", "changes"} {
		add(operation, casimulator.DropAfter, casimulator.DropBefore, casimulator.ServerError, casimulator.MalformedJSON, casimulator.HTMLPage)
	}
	// All orders at a CA share one token. One that is refused twice in a row is one of a customer who was thrown out, and an
	// order that is placed with it fails; so it expires when somebody asks for something.
	add("list", casimulator.TokenExpired)
	add("status", casimulator.TokenExpired)
	return sc
}

// lasting are the faults that are no accidents: what a CA always does with an order decides how that ends, whenever it does.
func (p *play) lasting() (faults []casimulator.Fault) {
	for _, s := range p.scripts {
		for _, f := range s.faults {
			if f.Times == 0 {
				faults = append(faults, f)
			}
		}
	}
	return faults
}

// replica starts the services with all that may happen to them.
func (p *play) replica() *node {
	p.t.Helper()
	return p.node(func(c *nodeConfig) {
		c.checkpoint, c.wire, c.types, c.pollTypes = p.checkpoint, p.wire, p.types, p.watched(slices.Clone(p.types))
	})
}

// checkpoint lets processes die.
func (p *play) checkpoint(service, point, orderID string) error {
	s := p.byOrder[orderID]
	if s == nil {
		return nil
	}
	if point == "CA asked" {
		p.mu.Lock()
		p.asked[orderID]++
		p.mu.Unlock()
	}
	if !s.dies(service, point, orderID) {
		return nil
	}
	if slices.Contains(underLease(), point) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dead[service][orderID] = true
	}
	return errDied
}

// underLease are the points at which the order's own row, or its poll's, is held by the one who dies there. At the others
// somebody else may hold it by now.
func underLease() []string {
	return []string{"intent stored", "CA called", "reconciling", "CA searched", "poll claimed", "CA asked", "poll handed over"}
}

// watched are issuers that tell when they are asked about an order twice at a time.
func (p *play) watched(all issuer.Types) issuer.Types {
	for i, t := range all {
		build := t.New
		all[i].New = func(ctx context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
			in, err := build(ctx, c, d)
			if err != nil {
				return nil, err
			}
			metered, ok := in.(issuer.Metered)
			if !ok {
				return nil, fmt.Errorf("issuer type %s has no account", t.Name)
			}
			return watched{Issuer: in, Metered: metered, play: p}, nil
		}
	}
	return all
}

// watched is what asyncpoller needs of an issuer.
type watched struct {
	issuer.Issuer
	issuer.Metered
	play *play
}

// Poll implements issuer.Issuer.
func (w watched) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	key := fmt.Sprint(ref)
	w.play.poll(key, 1)
	defer w.play.poll(key, -1)
	return w.Issuer.Poll(ctx, ref)
}

func (p *play) poll(key string, change int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.polling[key] += change; p.polling[key] > 1 {
		p.twice = append(p.twice, key)
	}
}

// wire lets calls between services fail.
func (p *play) wire(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	breaks, made := false, true
	for _, id := range ordersOf(req) {
		if s := p.byOrder[id]; s != nil {
			if fault, ok := s.breaks(path.Base(method)); ok {
				breaks, made = true, made && fault.reply
			}
		}
	}
	if !breaks || made {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if !breaks {
			return err
		}
	}
	return status.Error(codes.Unavailable, "the script says so") // nobody hears how it went
}

func ordersOf(req any) []string {
	switch r := req.(type) {
	case *issuancev1.SubmitOrderRequest:
		return []string{r.GetOrderId()}
	case *issuancev1.RecordPollResultRequest:
		return []string{r.GetOrderId()}
	case *eventv1.DeliverRequest:
		var out []string
		for _, e := range r.GetEvents() {
			if e.GetResourceType() == "order" && e.GetType() == "order.pending" {
				out = append(out, e.GetResourceId())
			}
		}
		return out
	}
	return nil
}

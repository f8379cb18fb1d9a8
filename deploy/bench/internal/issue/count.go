package issue

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// Statements are numbers of statements by service, and in all.
type Statements struct {
	// ByService leaves out BEGIN and COMMIT.
	ByService map[string]float64 `json:"by_service"`
	// Sum is that of ByService; All has BEGIN and COMMIT in it.
	Sum float64 `json:"sum"`
	All float64 `json:"with_begin_and_commit"`
}

func (s Statements) minus(before Statements) Statements {
	out := Statements{ByService: map[string]float64{}, Sum: s.Sum - before.Sum, All: s.All - before.All}
	for service, n := range s.ByService {
		out.ByService[service] = n - before.ByService[service]
	}
	return out
}

func (s Statements) per(n int) Statements {
	d := float64(max(n, 1))
	out := Statements{ByService: map[string]float64{}, Sum: s.Sum / d, All: s.All / d}
	for service, calls := range s.ByService {
		out.ByService[service] = calls / d
	}
	return out
}

// counts are what Postgres has counted so far.
type counts struct {
	statements   Statements
	transactions int64
}

// read reads the counters. The statements are those of the services' own roles; pg_stat_statements has to be loaded and its extension made.
func (m *measure) read(ctx context.Context) (counts, error) {
	c := counts{statements: Statements{ByService: map[string]float64{}}}
	rows, err := m.db.Query(ctx, `SELECT r.rolname, sum(s.calls)::float8, sum(s.calls) FILTER (WHERE s.query !~* '^\s*(begin|commit|rollback)')::float8
 FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname LIKE 'certctl\_%' GROUP BY 1`)
	if err != nil {
		return c, fmt.Errorf("read pg_stat_statements: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var role string
		var all, work float64
		if err := rows.Scan(&role, &all, &work); err != nil {
			return c, fmt.Errorf("read pg_stat_statements: %w", err)
		}
		c.statements.ByService[strings.TrimPrefix(role, "certctl_")] = work
		c.statements.Sum, c.statements.All = c.statements.Sum+work, c.statements.All+all
	}
	if err := rows.Err(); err != nil {
		return c, fmt.Errorf("read pg_stat_statements: %w", err)
	}
	m.own += 2
	if err := m.db.QueryRow(ctx, `SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()`).Scan(&c.transactions); err != nil {
		return c, fmt.Errorf("read pg_stat_database: %w", err)
	}
	return c, nil
}

// look is how often the outboxes are looked at.
const look = 100 * time.Millisecond

// drained waits until the outboxes of all services are empty.
func (m *measure) drained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Patience)
	defer cancel()
	for {
		var waiting, dead bool
		m.own++
		err := m.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM issuance.outbox WHERE NOT dead) OR EXISTS (SELECT 1 FROM inventory.outbox WHERE NOT dead)
 OR EXISTS (SELECT 1 FROM renewalscheduler.outbox WHERE NOT dead),
 EXISTS (SELECT 1 FROM issuance.outbox WHERE dead) OR EXISTS (SELECT 1 FROM inventory.outbox WHERE dead)`).Scan(&waiting, &dead)
		if err != nil {
			return fmt.Errorf("wait for the last events: %w", err)
		}
		if dead {
			return fmt.Errorf("events were refused by their receivers: see the tables outbox")
		}
		if !waiting {
			return nil
		}
		if err := tick.Wait(ctx, look); err != nil {
			return fmt.Errorf("wait for the last events: %w", err)
		}
	}
}

// done counts the orders whose version is stored, whose plan knows of it, and whose three audit events are in the chain.
func (m *measure) done(ctx context.Context, requests []*issuancev1.SubmitOrderRequest) (int, error) {
	const batch = 1000
	total := 0
	for len(requests) > 0 {
		part := requests[:min(batch, len(requests))]
		requests = requests[len(part):]
		orders, certificates := make([]string, 0, len(part)), make([]string, 0, len(part))
		for _, r := range part {
			orders, certificates = append(orders, r.GetOrderId()), append(certificates, r.GetCertificateId())
		}
		n := 0
		m.own++
		err := m.db.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[], $2::text[]) AS o (id, certificate_id)
 WHERE EXISTS (SELECT 1 FROM inventory.certificate_versions v WHERE v.order_id = o.id)
 AND EXISTS (SELECT 1 FROM inventory.certificates c WHERE c.id = o.certificate_id AND c.status = 'ACTIVE')
 AND EXISTS (SELECT 1 FROM renewalscheduler.plans p WHERE p.id = o.certificate_id AND p.state = 'SCHEDULED')
 AND EXISTS (SELECT 1 FROM audit.events e WHERE e.resource_id = o.certificate_id AND e.resource_type = 'certificate' AND e.action = 'version.stored')
 AND 2 = (SELECT count(*) FROM audit.events e WHERE e.resource_id = o.id AND e.resource_type = 'order' AND e.action IN ('order.submitted', 'order.issued'))`,
			orders, certificates).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("count what is done: %w", err)
		}
		total += n
	}
	return total, nil
}

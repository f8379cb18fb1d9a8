package trial

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/deploy/bench/internal/issue"
	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/peertls"
	"github.com/certctl/certctl/pkg/rpc"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// The least that is enough for a figure whose goal says for how long.
const (
	issuingFor  = time.Minute
	verifyGoal  = 5 * time.Second
	revokeGoal  = 20 * time.Millisecond
	appendGoal  = 5000
	issuingGoal = 700
)

// issuance places orders as fast as they are answered.
func issuance(ctx context.Context, b *bench) error {
	before, err := b.connections(ctx)
	if err != nil {
		return err
	}
	r, err := issue.Run(ctx, issue.Config{
		Issuance: b.site.Addresses["issuance"], InternalSecret: b.site.Secret, DatabaseURL: b.site.DatabaseURL, Duration: max(b.For, issuingFor), Processes: b.site.Processes(),
	})
	if err != nil {
		return err
	}
	var cpu float64
	var notes []string
	for _, name := range slices.Sorted(maps.Keys(r.CPU)) {
		cpu += r.CPU[name]
		notes = append(notes, fmt.Sprintf("%s: %.0f us of CPU per certificate", name, r.CPU[name]*1e6))
	}
	if r.Err != "" {
		notes = append(notes, r.Err)
	}
	b.add(report.Figure{
		Name: "issuance", What: "order with a CSR placed over gRPC, until its version is stored and its audit events are in the chain; local issuer, 64 under way",
		Goal: "≥ 700/s; ≤ 12 statements and ≤ 4 transactions per certificate",
		Met:  r.PerSecond >= issuingGoal && r.Statements.All <= 12 && r.Transactions <= 4 && r.Failed == 0,
		Value: fmt.Sprintf("%.0f/s for %.0f s; %.1f statements, %.2f transactions, %.0f us of CPU per certificate; answer p50 %s, p99 %s",
			r.PerSecond, r.Elapsed, r.Statements.All, r.Transactions, cpu*1e6, r.Latency.P50, r.Latency.P99),
		Limit: &limit.Limit{What: "raw ECDSA P-256 signatures, one core", Throughput: r.Signings}, Ratio: r.Ratio, Notes: append(notes, before...),
	})
	return nil
}

// connections tells what each role may have.
func (b *bench) connections(ctx context.Context) ([]string, error) {
	return b.ids(ctx, `SELECT rolname || ': at most ' || rolconnlimit || ' connections' FROM pg_roles WHERE rolname LIKE 'certctl\_%' AND rolconnlimit > 0 ORDER BY 1`)
}

// dial connects to a service that runs apart, as one of its peers.
func (b *bench) dial(as, service string) (*grpc.ClientConn, error) {
	trust, err := peertls.Client(b.site.Secret, service)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", service, err)
	}
	return rpc.Dial(rpc.ClientConfig{Service: as, Target: b.site.Addresses[service], InternalSecret: b.site.Secret, TLS: trust})
}

// auditing appends events as the outboxes of the services do, and verifies the chain.
func auditing(ctx context.Context, b *bench) error {
	const batch = 200
	peers := []string{"inventory", "issuance", "renewalscheduler", "asyncpoller"}
	clients := make([]eventv1.EventSinkServiceClient, 0, len(peers))
	for _, name := range peers {
		conn, err := b.dial(name, "audit")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		clients = append(clients, eventv1.NewEventSinkServiceClient(conn))
	}
	r, err := b.meter().Run(ctx, load.Plan{Workers: len(peers), Duration: b.For}, func(ctx context.Context, w, n int) error {
		events, err := records(batch)
		if err != nil {
			return err
		}
		answer, err := clients[w].Deliver(ctx, &eventv1.DeliverRequest{Events: events})
		if err != nil {
			return err
		}
		for _, a := range answer.GetResults() {
			if a.GetOutcome() != eventv1.EventResult_APPLIED {
				return fmt.Errorf("event of batch %d: %s %s", n, a.GetOutcome(), a.GetMessage())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	perSecond := r.Throughput * batch
	b.add(report.Figure{Name: "audit", What: fmt.Sprintf("append of audit events with their chain, in batches of %d from %d peers", batch, len(peers)), Goal: "≥ 5,000 events/s",
		Met: perSecond >= appendGoal && clean(r), Value: fmt.Sprintf("%.0f events/s", perSecond), Reading: &r})
	return b.verify(ctx)
}

func records(n int) ([]*eventv1.Event, error) {
	data, err := structpb.NewStruct(map[string]any{"version": 3, "serial_number": "0123456789abcdef0123456789abcdef", "issuer_id": "iss-local"})
	if err != nil {
		return nil, fmt.Errorf("make events: %w", err)
	}
	now := timestamppb.Now()
	var events []*eventv1.Event
	for range n {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make events: %w", err)
		}
		payload, err := anypb.New(&auditv1.Record{Actor: &typev1.Actor{Type: typev1.Actor_SERVICE, Id: "bench"}, Action: "certificate.renewed",
			Resource: &auditv1.Resource{Type: "certificate", Id: "bench-" + id.String()[24:]}, Outcome: auditv1.Event_SUCCESS, Data: data})
		if err != nil {
			return nil, fmt.Errorf("make events: %w", err)
		}
		events = append(events, &eventv1.Event{Id: id.String(), Type: "audit.record", ResourceType: "certificate", ResourceId: "bench", Time: now, Payload: payload})
	}
	return events, nil
}

// verify has a million events verified, or all if there are fewer.
func (b *bench) verify(ctx context.Context) error {
	conn, err := b.dial("issuance", "audit")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var took time.Duration
	answer, err := b.post(ctx, "/api/v1/audit/verify", map[string]any{"last_sequence": "1000000"}, &took)
	if err != nil {
		return err
	}
	var checked struct {
		Valid   bool   `json:"valid"`
		Checked uint32 `json:"events_checked"`
	}
	if err := json.Unmarshal(answer, &checked); err != nil {
		return fmt.Errorf("read verification: %w", err)
	}
	if !checked.Valid {
		return errors.New("the audit chain is not valid")
	}
	b.add(report.Figure{Name: "audit/verify", What: fmt.Sprintf("verification of %d events, each hash computed anew", checked.Checked), Goal: "1 M events in ≤ 5 s",
		Met: took <= verifyGoal && checked.Checked >= 1_000_000, Value: took.Round(time.Millisecond).String()})
	return nil
}

// revoke revokes certificates of the local issuer, a few each second.
func revoke(ctx context.Context, b *bench) error {
	const rate = 20
	needed := int(rate*b.For.Seconds()) + 100
	ids, err := b.ids(ctx, fmt.Sprintf(`SELECT id FROM inventory.certificates WHERE status = 'ACTIVE' AND issuer_id = 'iss-local' AND current_version > 0 AND name NOT LIKE 'bench%%' ORDER BY md5(id) LIMIT %d`, needed))
	if err != nil {
		return err
	}
	if len(ids) < needed {
		return fmt.Errorf("of %d certificates only %d are left that can be revoked, and %d are needed: -revoked must be less, or -sizes more", b.size, len(ids), needed)
	}
	revoked, err := b.ids(ctx, `SELECT count(*)::text FROM issuance.revocations`)
	if err != nil {
		return err
	}
	first, err := b.crl("revoke/first-crl", "first download of the CRL of the local issuer, which lists all that is revoked in the data")
	if err != nil {
		return err
	}
	r, err := b.meter().Run(ctx, load.Plan{Rate: rate, Workers: 8, Duration: b.For}, func(ctx context.Context, _, n int) error {
		_, err := b.post(ctx, certificates+"/"+ids[n]+"/revoke", map[string]any{"reason": "SUPERSEDED"}, nil)
		return err
	})
	if err != nil {
		return err
	}
	b.add(report.Figure{Name: "revoke", What: "revocation of a certificate of the local issuer, with " + revoked[0] + " revoked before", Goal: "p99 ≤ 20 ms; the CRL is not made in the request",
		Met: r.Latency.P99 <= revokeGoal && clean(r), Reading: &r})
	last, err := b.crl("revoke/crl", "download of the CRL of the local issuer after that")
	if err != nil {
		return err
	}
	for service, used := range last {
		last[service] = max(used, first[service])
	}
	b.memory("revoke/memory", last)
	return nil
}

// crl downloads the CRL of the local issuer, and gives what memory the services have then.
func (b *bench) crl(name, what string) (map[string]int64, error) {
	c := b.client()
	defer c.Close()
	began := time.Now()
	crl, err := c.Want(0, "/api/v1/issuers/iss-local/crl", "", http.StatusOK)
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	list, err := x509.ParseRevocationList(crl.Body)
	if err != nil {
		return nil, fmt.Errorf("read CRL: %w", err)
	}
	b.add(report.Figure{Name: name, What: what, Value: fmt.Sprintf("%d entries, %d bytes in %s", len(list.RevokedCertificateEntries), len(crl.Body), took.Round(100*time.Microsecond))})
	return b.site.Processes().Memory()
}

package inventory_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/inventory"
)

// doneEvent tells that a CA knows of a revocation.
func doneEvent(t testing.TB, certificateID string, m proto.Message) *eventv1.Event {
	t.Helper()
	payload, err := anypb.New(m)
	require.NoError(t, err)
	return &eventv1.Event{
		Id: uuid.Must(uuid.NewV7()).String(), Type: "revocation.done", ResourceType: "certificate", ResourceId: certificateID, Payload: payload,
	}
}

// revocations counts versions by the state of their revocation.
func (r *replica) revocations(t testing.TB, state string) (n int) {
	t.Helper()
	require.NoError(t, r.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM certificate_versions WHERE revocation_state = $1`, state).Scan(&n))
	return n
}

// revoked makes certificates with a version each, revoked here and not yet known to be at the CA. It gives the events of the CA.
func (r *replica) revoked(t testing.TB, n int) (events []*eventv1.Event) {
	t.Helper()
	for i := range n {
		id := named("c-%d-%d", n, i)
		r.certificate(t, id)
		issued := r.issue(t, id, "")
		answer, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: id})
		require.NoError(t, err)
		require.Equal(t, inventoryv1.Revocation_PENDING, answer.GetRevocation().GetState())
		events = append(events, doneEvent(t, id, &issuancev1.RevocationDone{CertificateId: id, SerialNumbers: []string{issued.serial}}))
	}
	return events
}

func TestManyRevocationsThatAreDoneAreEachNotedAndABadOneStopsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.issuance.revokeErr = errs.New(errs.Unavailable, "CA_AWAY", "away")
	r, sent := w.counted(t)
	const many = 20
	cost := map[int]int64{}
	for _, n := range []int{1, many} {
		events := r.revoked(t, n)
		before := sent.n.Load()
		for _, outcome := range r.deliverAll(t, events...) {
			require.Equal(t, eventv1.EventResult_APPLIED, outcome)
		}
		cost[n] = sent.n.Load() - before
	}
	require.Equal(t, cost[1], cost[many], "noted in one statement")
	require.Equal(t, 1+many, r.revocations(t, "DONE"))

	events := r.revoked(t, many+1)
	events[3] = doneEvent(t, events[3].GetResourceId(), &issuancev1.CertificateIssued{})
	events[7] = doneEvent(t, "c-none", &issuancev1.RevocationDone{CertificateId: "c-none", SerialNumbers: []string{"abc"}})
	for i, outcome := range r.deliverAll(t, events...) {
		if i == 3 {
			require.Equal(t, eventv1.EventResult_REJECTED, outcome)
			continue
		}
		require.Equal(t, eventv1.EventResult_APPLIED, outcome, i)
	}
	require.Equal(t, 1+many+many-1, r.revocations(t, "DONE"))
	require.Equal(t, 2, r.revocations(t, "PENDING"), "of those two nothing was said")
}

// TestWhatTheCASaidOfARevocationMayBeLostAndTheRevocationMayNot: that the CA knows is noted without waiting for the disk.
func TestWhatTheCASaidOfARevocationMayBeLostAndTheRevocationMayNot(t *testing.T) {
	t.Parallel()
	server := testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{"synchronous_commit": "on", "wal_writer_delay": "10s"}})
	base := secretbox.NewSecret(server.URL())
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: base, Schemas: []pg.Schema{inventory.Schema()}}))
	open := func() *pg.DB {
		db, err := pg.Open(t.Context(), pg.Config{BaseURL: base, Service: "inventory", MaxConns: 6, Listen: true})
		require.NoError(t, err)
		t.Cleanup(db.Close)
		return db
	}
	w := newPeers(t)
	r := w.atRest(t, open())
	r.certificate(t, "c-1")
	issued := r.issue(t, "c-1", "")

	answer, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-1"})
	require.NoError(t, err)
	require.Equal(t, inventoryv1.Revocation_REVOKED, answer.GetRevocation().GetState())
	var waits string // of the connection that was used last
	require.NoError(t, r.db.Pool.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&waits))
	require.Equal(t, "on", waits, "what comes after the note waits for the disk as ever")
	server.Kill(t)
	server.Start(t)

	again := w.atRest(t, open())
	require.Equal(t, inventoryv1.Certificate_REVOKED, again.get(t, "c-1").GetStatus())
	// Whether the note was lost depends on when the database was killed: from here on it is.
	_, err = again.db.Pool.Exec(t.Context(), `UPDATE certificate_versions SET revocation_state = 'PENDING' WHERE revocation_state = 'DONE'`)
	require.NoError(t, err)
	require.Equal(t, 1, again.revocations(t, "PENDING"))
	again = w.startOn(t, quick(), open())

	eventually(t, func() bool {
		events := told(t, w.issuance, "certificate.revoked", certificateChanged)
		return len(events) == 1 && len(events[0].GetRevokedVersions()) == 1 && events[0].GetRevokedVersions()[0].GetSerialNumber() == issued.serial
	}, "the event brings issuance the same revocation")
	require.Equal(t, eventv1.EventResult_APPLIED, again.deliver(t, "revocation.done", &issuancev1.RevocationDone{CertificateId: "c-1", SerialNumbers: []string{issued.serial}}))
	require.Equal(t, 1, again.revocations(t, "DONE"))
	w.issuance.mu.Lock()
	defer w.issuance.mu.Unlock()
	require.Len(t, w.issuance.revoked, 1, "it was asked once; the event goes to what it has stored")
}

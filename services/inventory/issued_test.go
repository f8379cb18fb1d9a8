package inventory_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// event tells of an issued certificate.
func (l leaf) event(t testing.TB, requestID string) *eventv1.Event {
	t.Helper()
	payload, err := anypb.New(l.issued)
	require.NoError(t, err)
	return &eventv1.Event{
		Id: uuid.Must(uuid.NewV7()).String(), Type: "certificate.issued", ResourceType: "certificate", ResourceId: l.issued.GetCertificateId(),
		RequestId: requestID, Payload: payload,
	}
}

// deliverAll hands events over in one delivery and answers their outcomes.
func (r *replica) deliverAll(t testing.TB, events ...*eventv1.Event) []eventv1.EventResult_Outcome {
	t.Helper()
	a, err := eventv1.NewEventSinkServiceClient(r.peer).Deliver(t.Context(), &eventv1.DeliverRequest{Events: events})
	require.NoError(t, err)
	out := make([]eventv1.EventResult_Outcome, 0, len(events))
	for _, result := range a.GetResults() {
		out = append(out, result.GetOutcome())
	}
	return out
}

func (r *replica) versions(t testing.TB, certificateID string) []*inventoryv1.CertificateVersion {
	t.Helper()
	a, err := r.certificates().ListCertificateVersions(t.Context(), &inventoryv1.ListCertificateVersionsRequest{CertificateId: certificateID})
	require.NoError(t, err)
	return a.GetVersions()
}

func TestFiftyIssuedCertificatesCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	r, sent := newWorld(t).counted(t)
	cost := map[int]int64{}
	for _, n := range []int{1, 50} {
		events := make([]*eventv1.Event, 0, n)
		for i := range n {
			id := named("many-%d-%d", n, i)
			r.certificate(t, id)
			events = append(events, newLeaf(t, id, "", 24*time.Hour).event(t, id))
		}
		before := sent.n.Load()
		for _, outcome := range r.deliverAll(t, events...) {
			require.Equal(t, eventv1.EventResult_APPLIED, outcome)
		}
		cost[n] = sent.n.Load() - before
	}
	require.Equal(t, cost[1], cost[50])
	// The ids of events, the certificates, what is known of orders and versions, versions, certificates, events, the revision.
	require.LessOrEqual(t, cost[50], int64(8))
}

func TestTheVersionsOfADeliveryAreNumberedInTheirOrder(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "holder")
	r.target(t, "tgt-1", h.id)
	r.certificate(t, "cert-1", "tgt-1")
	r.certificate(t, "cert-2")
	first, again, second, other := newLeaf(t, "cert-1", h.id, 24*time.Hour), newLeaf(t, "cert-1", h.id, 24*time.Hour), newLeaf(t, "cert-1", "", 48*time.Hour), newLeaf(t, "cert-2", "", 24*time.Hour)
	again.issued = proto.CloneOf(first.issued)

	outcomes := r.deliverAll(t, first.event(t, "req-1"), other.event(t, "req-2"), again.event(t, "req-3"), second.event(t, "req-4"))

	require.Equal(t, []eventv1.EventResult_Outcome{1, 1, 1, 1}, outcomes)
	versions := r.versions(t, "cert-1")
	require.Len(t, versions, 2, "an order gives one version")
	got := r.get(t, "cert-1")
	require.EqualValues(t, 2, got.GetCurrentVersion())
	require.Equal(t, second.serial, got.GetSerialNumber())
	require.EqualValues(t, 1, r.get(t, "cert-2").GetCurrentVersion())
	require.Equal(t, inventoryv1.Certificate_ACTIVE, r.get(t, "cert-2").GetStatus())
	require.EqualValues(t, 1, r.deployments(t, "cert-1")[0].GetDesiredVersion(), "a target gets the version of its agent")
	eventually(t, func() bool {
		return len(told(t, w.scheduler, "version.stored", func() *inventoryv1.VersionStored { return &inventoryv1.VersionStored{} })) == 3
	}, "three versions are told")
	requests := map[string]string{}
	eventually(t, func() bool {
		w.audit.mu.Lock()
		defer w.audit.mu.Unlock()
		for _, e := range w.audit.events {
			requests[e.GetRequestId()] = e.GetResourceId()
		}
		return requests["req-1"] != "" && requests["req-4"] != ""
	}, "what was stored is told to audit")
	require.Equal(t, "cert-1", requests["req-1"])
	require.Equal(t, "cert-2", requests["req-2"], "each event names the request that it comes from")
	require.Equal(t, "cert-1", requests["req-4"])
	require.NotContains(t, requests, "req-3")
}

func TestABadCertificateOfADeliveryCostsNoOther(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.certificate(t, "cert-1")
	r.certificate(t, "cert-2")
	broken := newLeaf(t, "cert-2", "", 24*time.Hour)
	broken.issued.CertificatePem = "no PEM"

	outcomes := r.deliverAll(t, newLeaf(t, "cert-none", "", time.Hour).event(t, ""), newLeaf(t, "cert-1", "", 24*time.Hour).event(t, ""),
		broken.event(t, ""), newLeaf(t, "cert-2", "", 24*time.Hour).event(t, ""))

	require.Equal(t, []eventv1.EventResult_Outcome{
		eventv1.EventResult_REJECTED, eventv1.EventResult_APPLIED, eventv1.EventResult_REJECTED, eventv1.EventResult_APPLIED,
	}, outcomes)
	require.Len(t, r.versions(t, "cert-1"), 1)
	require.Len(t, r.versions(t, "cert-2"), 1)
}

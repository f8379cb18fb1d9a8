package inventory_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory"
)

func (r *replica) joinToken(t testing.TB, req *inventoryv1.CreateJoinTokenRequest) *inventoryv1.JoinToken {
	t.Helper()
	a, err := r.registry().CreateJoinToken(t.Context(), req)
	require.NoError(t, err)
	require.NotEmpty(t, a.GetJoinToken().GetToken())
	return a.GetJoinToken()
}

func (r *replica) tryEnroll(t testing.TB, req *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	t.Helper()
	return agentv1.NewAgentServiceClient(r.anon).Enroll(t.Context(), req)
}

func (h *host) valid(t testing.TB) error {
	t.Helper()
	_, err := h.client().ListAssignments(h.ctx(t.Context()), &agentv1.ListAssignmentsRequest{})
	return err
}

func TestAJoinTokenIsBoundedInUsesAndTime(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	j := r.joinToken(t, &inventoryv1.CreateJoinTokenRequest{MaxUses: 2})
	for _, name := range []string{"one", "two"} {
		_, err := r.tryEnroll(t, enrollment(name, j.GetToken()))
		require.NoError(t, err)
	}
	_, err := r.tryEnroll(t, enrollment("three", j.GetToken()))
	requireReason(t, err, errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID")
	_, err = r.tryEnroll(t, enrollment("four", strings.Repeat("x", 43)))
	requireReason(t, err, errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID")

	k := r.joinToken(t, &inventoryv1.CreateJoinTokenRequest{})
	_, err = w.database.Admin(t).Exec(t.Context(), `UPDATE inventory.join_tokens SET expire_time = now() WHERE id = $1`, k.GetId())
	require.NoError(t, err)
	_, err = r.tryEnroll(t, enrollment("five", k.GetToken()))
	requireReason(t, err, errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID")

	list, err := r.registry().ListJoinTokens(t.Context(), &inventoryv1.ListJoinTokensRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetJoinTokens(), 2)
	for _, shown := range list.GetJoinTokens() {
		require.Empty(t, shown.GetToken(), "a secret is shown once")
	}
	_, err = r.registry().DeleteJoinToken(t.Context(), &inventoryv1.DeleteJoinTokenRequest{Id: j.GetId()})
	require.NoError(t, err)
	_, err = r.registry().DeleteJoinToken(t.Context(), &inventoryv1.DeleteJoinTokenRequest{Id: j.GetId()})
	requireReason(t, err, errs.NotFound, "JOIN_TOKEN_NOT_FOUND")
	_, err = r.registry().CreateJoinToken(t.Context(), &inventoryv1.CreateJoinTokenRequest{Ttl: durationpb.New(time.Second)})
	requireFields(t, err, "ttl")
}

func TestAnyStandingTokenOfAListIsAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	const next = "the-next-token-of-the-fleet"
	cfg.AgentJoinToken = secretbox.NewSecret(standing + ", " + next)
	r := w.start(t, cfg)
	for name, token := range map[string]string{"one": standing, "two": next} {
		_, err := r.tryEnroll(t, enrollment(name, token))
		require.NoError(t, err, name)
	}
	for name, token := range map[string]string{"three": cfg.AgentJoinToken.Reveal(), "four": "the-token-of-others-of-a-fleet"} {
		_, err := r.tryEnroll(t, enrollment(name, token))
		requireReason(t, err, errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID")
	}
}

func TestAShortStandingTokenIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.AgentJoinToken = secretbox.NewSecret(standing + ",short")
	_, err := inventory.New(cfg, inventory.Deps{
		DB: w.database.Open(t, "inventory"), Targets: validator{},
		Peers: inventory.Peers{Issuance: w.toIssuance, RenewalScheduler: w.toSched, Audit: w.toAudi},
	})
	require.ErrorContains(t, err, "item 2 of 2 has 5 bytes")
}

func TestATokenIsNeverMadeTwiceForOneKey(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	req := &inventoryv1.CreateJoinTokenRequest{RequestId: "k"}
	r.joinToken(t, req)
	_, err := r.registry().CreateJoinToken(t.Context(), req)
	requireReason(t, err, errs.Conflict, "JOIN_TOKEN_SHOWN")
}

func TestEnrolmentNeverMakesASilentTwin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		// used: the first credential has been seen.
		used, sameInstance, sameToken bool
		allowed, tokenAllows          bool
		taken                         bool
		// oldDies: the first credential does not work afterwards.
		oldDies bool
	}{
		{name: "the answer was lost", sameInstance: true, sameToken: true, oldDies: true},
		{name: "the same installation with a credential in use", used: true, sameInstance: true, sameToken: true, taken: true},
		{name: "another installation before the first use", sameToken: true, taken: true},
		{name: "another installation", used: true, taken: true},
		{name: "another token before the first use", sameInstance: true, taken: true},
		{name: "an operator's word", used: true, allowed: true, oldDies: true},
		{name: "a token that allows it", used: true, tokenAllows: true, oldDies: true},
		{name: "a token that allows it before the first use", tokenAllows: true, oldDies: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, r := one(t)
			token := r.joinToken(t, &inventoryv1.CreateJoinTokenRequest{MaxUses: 1}).GetToken()
			req := enrollment("host", token)
			first, err := r.tryEnroll(t, req)
			require.NoError(t, err)
			old := &host{id: first.GetAgentId(), credential: first.GetCredential(), conn: r.anon}
			if c.used {
				require.NoError(t, old.valid(t))
			}
			if c.allowed {
				_, err = r.registry().AllowReenrollment(t.Context(), &inventoryv1.AllowReenrollmentRequest{Id: old.id})
				require.NoError(t, err)
			}
			again := enrollment("host", token)
			if c.sameInstance {
				again.InstanceId = req.GetInstanceId()
			}
			if !c.sameToken {
				again.JoinToken = r.joinToken(t, &inventoryv1.CreateJoinTokenRequest{AllowReenrollment: c.tokenAllows}).GetToken()
			}
			second, err := r.tryEnroll(t, again)
			if c.taken {
				requireReason(t, err, errs.AlreadyExists, "AGENT_NAME_TAKEN")
				require.NoError(t, old.valid(t), "a refused enrolment takes nothing away")
				return
			}
			require.NoError(t, err)
			require.Equal(t, old.id, second.GetAgentId(), "it is the same agent")
			if c.oldDies {
				requireReason(t, old.valid(t), errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
			}
			fresh := &host{id: second.GetAgentId(), credential: second.GetCredential(), conn: r.anon}
			require.NoError(t, fresh.valid(t))
			eventually(t, func() bool {
				enrolled := 0
				for _, action := range w.audit.audited(t, old.id) {
					if action == "agent.enrolled" {
						enrolled++
					}
				}
				return enrolled == 2
			}, "each credential that is given out is in the record")
			third, err := r.tryEnroll(t, enrollment("host", standing))
			require.Nil(t, third)
			requireReason(t, err, errs.AlreadyExists, "AGENT_NAME_TAKEN")
			var agents int
			require.NoError(t, w.database.Admin(t).QueryRow(t.Context(), `SELECT count(*) FROM inventory.agents`).Scan(&agents))
			require.Equal(t, 1, agents)
		})
	}
}

func TestACredentialIsRotatedInTwoPhases(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "rot")
	require.NoError(t, h.valid(t))
	rotate := func() *host {
		a, err := h.client().RotateCredential(h.ctx(t.Context()), &agentv1.RotateCredentialRequest{})
		require.NoError(t, err)
		return &host{id: h.id, credential: a.GetCredential(), conn: h.conn}
	}
	lost, next := rotate(), rotate()
	require.NoError(t, h.valid(t), "the old one holds until the new one is used")
	requireReason(t, lost.valid(t), errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
	require.NoError(t, next.valid(t))
	requireReason(t, h.valid(t), errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
	require.NoError(t, next.valid(t))
}

func TestAStreamEndsWhenItsCredentialDoes(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "old")
	l := h.connect(t)
	a, err := h.client().RotateCredential(h.ctx(t.Context()), &agentv1.RotateCredentialRequest{})
	require.NoError(t, err)
	require.NoError(t, (&host{credential: a.GetCredential(), conn: h.conn}).valid(t))
	require.Nil(t, l.next(t))
	requireReason(t, l.err, errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
}

func TestAnOldCredentialIsHintedForRotationOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.CredentialLifetime = time.Nanosecond
	r := w.start(t, cfg)
	require.NotNil(t, r.enroll(t, "aged").connect(t).next(t).GetRotateHint())
}

func TestAgentsNeedTheirOwnCredential(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := &host{conn: r.anon}
	_, err := h.client().ListAssignments(t.Context(), &agentv1.ListAssignmentsRequest{})
	requireReason(t, err, errs.Unauthenticated, "CREDENTIAL_MISSING")
	h.credential = "wrong"
	requireReason(t, h.valid(t), errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
	s, err := h.client().Connect(h.ctx(t.Context()))
	require.NoError(t, err)
	_, err = s.Recv()
	requireReason(t, err, errs.Unauthenticated, "CREDENTIAL_NOT_VALID")
	// A user is no agent, and an agent no user.
	h.conn = r.admin
	requireReason(t, h.valid(t), errs.PermissionDenied, "ROLE_NOT_ALLOWED")
	_, err = inventoryv1.NewCertificateServiceClient(r.anon).ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{})
	require.Equal(t, errs.Unauthenticated, errs.KindOf(err))
}

func TestARetiredAgentEnds(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "ret")
	l := h.connect(t)
	r.target(t, "t-ret", h.id)
	r.certificate(t, "c-ret", "t-ret")
	r.issue(t, "c-ret", h.id)
	_, err := r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-ret"))
	require.NoError(t, err)

	_, err = r.registry().RetireAgent(t.Context(), &inventoryv1.RetireAgentRequest{Id: h.id})
	requireReason(t, err, errs.Conflict, "AGENT_HAS_TARGETS")
	require.Equal(t, []string{"1", "1"}, []string{errs.MetaOf(err)["targets"], errs.MetaOf(err)["certificates"]})
	require.Contains(t, err.Error(), "1 targets, which serve 1 certificates")
	for range 2 {
		a, err := r.registry().RetireAgent(t.Context(), &inventoryv1.RetireAgentRequest{Id: h.id, Force: true})
		require.NoError(t, err)
		require.Equal(t, inventoryv1.Agent_RETIRED, a.GetAgent().GetStatus())
	}
	for m := l.next(t); ; m = l.next(t) {
		require.NotNil(t, m, "the stream ended without a word")
		if m.GetRetired() != nil {
			break
		}
	}
	require.Nil(t, l.next(t))
	requireReason(t, h.valid(t), errs.PermissionDenied, "AGENT_RETIRED")
	s, err := h.client().Connect(h.ctx(t.Context()))
	require.NoError(t, err)
	m, err := s.Recv()
	require.NoError(t, err)
	require.NotNil(t, m.GetRetired(), "it is told so also when it comes back")

	require.Empty(t, r.deployments(t, "c-ret"))
	eventually(t, func() bool {
		f := told(t, w.scheduler, "task.finished", taskFinished)
		return len(f) == 1 && f[0].GetProblem().GetReason() == "AGENT_RETIRED" && f[0].GetPermanent()
	}, "its task has ended")
	_, err = r.certificates().CreateCertificate(t.Context(), wanted("c-ret2", "t-ret"))
	requireFields(t, err, "target_ids[0]")
	next := r.enroll(t, "ret")
	require.NotEqual(t, h.id, next.id, "the name is free for another agent")
}

func TestAnAgentIsOnlineWhileItIsHeardAndLeavesNoAuditEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.AgentOfflineAfter = 200 * time.Millisecond
	r := w.start(t, cfg)
	h := r.enroll(t, "pulse")
	status := func() inventoryv1.Agent_Status {
		a, err := r.registry().GetAgent(t.Context(), &inventoryv1.GetAgentRequest{Id: h.id})
		require.NoError(t, err)
		return a.GetAgent().GetStatus()
	}
	require.Equal(t, inventoryv1.Agent_OFFLINE, status())
	l := h.connect(t)
	require.Equal(t, inventoryv1.Agent_ONLINE, status())
	eventually(t, func() bool { return status() == inventoryv1.Agent_OFFLINE }, "silence makes it offline")
	beat := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}}
	eventually(t, func() bool {
		require.NoError(t, l.stream.Send(beat))
		return status() == inventoryv1.Agent_ONLINE
	}, "a heartbeat brings it back")
	a, err := r.registry().GetAgent(t.Context(), &inventoryv1.GetAgentRequest{Id: h.id})
	require.NoError(t, err)
	require.Equal(t, "9.9", a.GetAgent().GetVersion())
	eventually(t, func() bool { return len(w.audit.audited(t, h.id)) > 0 }, "that it was enrolled is in the record")
	require.Equal(t, []string{"agent.enrolled"}, w.audit.audited(t, h.id))

	revision := func() int64 {
		a, err := eventv1.NewRevisionServiceClient(r.peer).GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: "agents"})
		require.NoError(t, err)
		return a.GetRevision()
	}
	seen := func() time.Time {
		a, err := r.registry().GetAgent(t.Context(), &inventoryv1.GetAgentRequest{Id: h.id})
		require.NoError(t, err)
		return a.GetAgent().GetLastSeenTime().AsTime()
	}
	before, last := revision(), seen()
	require.NoError(t, l.stream.Send(beat))
	eventually(t, func() bool { return seen().After(last) }, "a heartbeat is written")
	require.Greater(t, revision(), before, "so that no 304 hides it")
}

func TestTwoReplicasServeOneFleet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.start(t, quick()), w.start(t, quick())
	h := a.enroll(t, "far")
	a.certificate(t, "c-far")
	onB := h.on(b).connect(t)
	eventually(t, func() bool { return listening(t, w) == 2 }, "both listen")

	_, err := a.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-far"))
	require.NoError(t, err)
	began := time.Now()
	number := onB.hint(t)
	require.Less(t, time.Since(began), 2*time.Second)
	require.Len(t, h.on(b).list(t, number-1), 1)

	// The newest stream wins, wherever it is.
	onA := h.connect(t)
	require.Nil(t, onB.next(t))
	requireReason(t, onB.err, errs.Conflict, "STREAM_SUPERSEDED")
	require.Positive(t, onA.hint(t))

	// A page that one replica began, the other goes on with.
	a.certificate(t, "c-far2")
	first, err := a.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{PageSize: 1})
	require.NoError(t, err)
	second, err := b.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{PageSize: 1, PageToken: first.GetNextPageToken()})
	require.NoError(t, err)
	require.Equal(t, []string{"c-far2", "c-far"}, append(ids(first.GetCertificates()), ids(second.GetCertificates())...))

	_, err = b.registry().RetireAgent(t.Context(), &inventoryv1.RetireAgentRequest{Id: h.id})
	require.NoError(t, err)
	require.NotNil(t, onA.next(t).GetRetired())
}

// listening counts the replicas that wait for notifications.
func listening(t testing.TB, w *world) (n int) {
	t.Helper()
	require.NoError(t, w.database.Admin(t).QueryRow(t.Context(),
		`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`).Scan(&n))
	return n
}

func TestTheNewestStreamOfAnAgentWins(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "twice")
	first := h.connect(t)
	h.connect(t)
	require.Nil(t, first.next(t))
	requireReason(t, first.err, errs.Conflict, "STREAM_SUPERSEDED")
}

func TestAShutdownDrainsStreams(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	l := r.enroll(t, "drained").connect(t)
	r.stop()
	d := l.next(t).GetDrain()
	require.NotNil(t, d)
	require.Positive(t, d.GetReconnectAfter().AsDuration())
	require.Nil(t, l.next(t))
}

func TestTheServerEndsStreamsAfterAWhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.StreamLifetime = 50 * time.Millisecond
	r := w.start(t, cfg)
	require.NotNil(t, r.enroll(t, "long").connect(t).next(t).GetDrain())
}

func TestAStreamBeginsWithAHello(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "rude")
	s, err := h.client().Connect(h.ctx(t.Context()))
	require.NoError(t, err)
	require.NoError(t, s.CloseSend())
	_, err = s.Recv()
	requireFields(t, err, "hello")
	_, err = h.client().ReportAssignment(h.ctx(t.Context()), &agentv1.ReportAssignmentRequest{
		AssignmentId: uuid.NewString(), LeaseId: "x", Report: &agentv1.ReportAssignmentRequest_Progress{Progress: &agentv1.Progress{}},
	})
	requireFields(t, err, "lease_id")
}

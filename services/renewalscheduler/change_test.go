package renewalscheduler_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// change has somebody change a certificate, and inventory tell of it.
func (s *site) change(id, by string, change func(*inventoryv1.CertificateRecord)) {
	s.do(func() {
		rec := s.certs[id]
		change(rec)
		cert, _ := proto.Clone(rec.GetCertificate()).(*inventoryv1.Certificate)
		e := &inventoryv1.CertificateChanged{Certificate: cert, Actor: &typev1.Actor{Type: typev1.Actor_USER, Id: by}}
		for _, h := range rec.GetKeyHolders() {
			if h.GetAgentId() != "" && h.GetVersion() == 0 {
				e.AgentsWithoutVersion = append(e.AgentsWithoutVersion, h.GetAgentId())
			}
		}
		s.emit("certificate.updated", "certificate", id, e)
	})
}

func named(names ...string) func(*inventoryv1.CertificateRecord) {
	return func(rec *inventoryv1.CertificateRecord) { rec.GetCertificate().DnsNames = names }
}

// ordered gives what the order of a job was placed for.
func (s *site) ordered(j *schedulerv1.Job) (req *issuancev1.SubmitOrderRequest) {
	s.do(func() { req = s.orders[j.GetOrderId()] })
	return req
}

// calm waits until the job processor has looked a few times more.
func (s *site) calm() {
	s.t.Helper()
	runs := s.replica.service.Loops()[1].Runs
	require.True(s.t, eventually(s.t, func() bool { return s.replica.service.Loops()[1].Runs > runs+5 }))
}

func TestWhatWasChangedIsIssuedWithoutARequest(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*inventoryv1.CertificateRecord){
		"names":   named("new.example.com", "more.example.com"),
		"issuer":  func(rec *inventoryv1.CertificateRecord) { rec.GetCertificate().IssuerId = "iss-other" },
		"profile": func(rec *inventoryv1.CertificateRecord) { rec.GetCertificate().ProfileId = "prof-approval" },
		"key": func(rec *inventoryv1.CertificateRecord) {
			rec.GetCertificate().KeyAlgorithm = typev1.KeyAlgorithm_ECDSA_P384
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.profiles["prof-approval"].RequiresApproval = false
			id := s.create(wanted{id: "cert-change", agents: []string{"agent-1", "agent-2"}})
			s.job(id, completed)
			s.change(id, "bob", change)
			j := s.job(id, completed, s.nth(2))
			require.Equal(t, schedulerv1.Job_RENEW, j.GetType())
			require.Equal(t, "bob", j.GetRequestedBy())
			require.Len(t, j.GetKeys(), 2, "all key holders get it")
			cert := s.certs[id].GetCertificate()
			got := s.ordered(j)
			require.Equal(t, cert.GetDnsNames(), got.GetNames().GetDnsNames())
			require.Equal(t, []string{cert.GetIssuerId(), cert.GetProfileId()}, []string{got.GetIssuerId(), got.GetProfileId()})
			require.Equal(t, cert.GetKeyAlgorithm(), got.GetKeyAlgorithm())
			require.True(t, eventually(t, func() bool {
				cause := ""
				s.do(func() {
					for _, r := range s.audit {
						if r.GetResource().GetId() == j.GetId() && r.GetAction() == "job.created" {
							cause = r.GetData().GetFields()["cause"].GetStringValue()
						}
					}
				})
				return cause == "its names, issuer, profile or key algorithm were changed by bob"
			}), "the record says why")

			s.change(id, "bob", func(rec *inventoryv1.CertificateRecord) { rec.GetCertificate().Owner = "else" })
			s.calm()
			require.Len(t, s.jobs(id), 2, "a change of what is not in the certificate issues nothing")
		})
	}
}

func TestAChangeBeforeTheFirstIssueIsWhatIsIssued(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
	id := s.create(wanted{id: "cert-early", agents: []string{"agent-1"}})
	s.job(id, awaitingCSR)
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 1 }))
	s.do(func() {
		s.agentAnswer = func(a string) (string, *typev1.Problem, bool) { return "CSR of " + a, nil, false }
	})
	s.change(id, "bob", named("right.example.com"))
	j := s.job(id, completed, s.nth(1))
	require.Equal(t, int32(1), j.GetAttempt(), "it is no failure")
	require.Equal(t, []string{"right.example.com"}, s.ordered(j).GetNames().GetDnsNames())
	s.do(func() {
		require.Len(t, s.tasks, 2)
		for id, task := range s.tasks {
			require.Equal(t, s.cancelled[id], !slices.Contains(task.GetCsr().GetNames().GetDnsNames(), "right.example.com"))
		}
	})
	s.calm()
	require.Len(t, s.jobs(id), 1)
}

func TestAFirstIssueThatFailedIsTriedWithTheNewNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_REJECTED }
	id := s.create(wanted{id: "cert-typo", agents: []string{"agent-1"}})
	s.job(id, failed)
	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_ISSUED }
	})
	s.change(id, "bob", named("mended.example.com"))
	j := s.job(id, completed, s.nth(2))
	require.Equal(t, schedulerv1.Job_ISSUE, j.GetType())
	require.Equal(t, []string{"mended.example.com"}, s.ordered(j).GetNames().GetDnsNames())
}

func TestAChangeWhileTheCADecidesBuysNothingTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_PENDING }
	id := s.create(wanted{id: "cert-wait", agents: []string{"agent-1"}})
	first := s.job(id, awaitingCA)
	s.change(id, "bob", named("later.example.com"))
	for range 5 {
		s.advance(2 * time.Minute)
		s.calm()
	}
	_, orders := s.counts()
	require.Equal(t, 1, orders, "the order goes on as it was placed")
	require.Equal(t, awaitingCA, s.get(first.GetId()).GetStatus())

	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_ISSUED }
		s.decideOrder(first.GetOrderId(), issuancev1.Order_ISSUED)
	})
	j := s.job(id, completed, s.nth(2))
	require.Equal(t, schedulerv1.Job_RENEW, j.GetType())
	require.Equal(t, []string{"later.example.com"}, s.ordered(j).GetNames().GetDnsNames())
	s.calm()
	require.Len(t, s.jobs(id), 2)
}

func TestAFailedReissueIsTriedAgainLongBeforeTheRenewalIsDue(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-again", agents: []string{"agent-1"}})
	s.job(id, completed)
	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_REJECTED }
	})
	s.change(id, "bob", named("again.example.com"))
	s.job(id, failed, s.nth(2))
	at := s.renewTime(id)
	require.WithinRange(t, at, s.clock(), s.clock().Add(20*time.Minute))
	e := s.explain(id)
	require.Equal(t, "ORDER_REJECTED", e.GetBlocker().GetReason())
	require.True(t, slices.ContainsFunc(e.GetDecisions(), func(d *schedulerv1.Decision) bool {
		return d.GetSubject() == "reissue" && d.GetRule() == "its names, issuer, profile or key algorithm were changed by bob"
	}), "%v", e.GetDecisions())
	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_ISSUED }
	})
	s.until(at)
	s.job(id, completed, s.nth(3))
	require.True(t, s.renewTime(id).After(s.clock().Add(50*day)))
}

func TestAReissueThatIsLetGoWaitsForTheRenewal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-let-go", agents: []string{"agent-1"}})
	s.job(id, completed)
	s.do(func() { s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false } })
	s.change(id, "bob", named("let-go.example.com"))
	j := s.job(id, awaitingCSR, s.nth(2))
	_, err := s.as("carl").CancelJob(t.Context(), &schedulerv1.CancelJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	require.True(t, s.renewTime(id).After(s.clock().Add(50*day)))
}

func TestWhoChangesWhatIsIssuedCannotApproveIt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-mallory", profile: "prof-approval", agents: []string{"agent-1"}})
	j := s.job(id, awaitingApproval)
	s.change(id, "mallory", named("bank.example.com"))
	require.True(t, eventually(t, func() bool { return s.get(j.GetId()).GetRevision() > j.GetRevision() }))
	s.refused("mallory", j.GetId())
	_, err := s.approve("carl", j.GetId()) // of the names before
	require.NoError(t, err)
	s.job(id, awaitingApproval, func(now *schedulerv1.Job) bool { return now.GetRevision() > j.GetRevision()+2 })
	s.refused("mallory", j.GetId())
	_, err = s.approve("carl", j.GetId())
	require.NoError(t, err)
	s.job(id, completed)

	// By the way of a rejected change, and the clock.
	s.change(id, "mallory", named("mint.example.com"))
	j = s.job(id, awaitingApproval, s.nth(2))
	s.refused("mallory", j.GetId())
	_, err = s.as("carl").RejectJob(t.Context(), &schedulerv1.RejectJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	s.until(s.renewTime(id))
	j = s.job(id, awaitingApproval, s.nth(3))
	require.Equal(t, "system:renewal-check", j.GetRequestedBy())
	s.refused("mallory", j.GetId())
	s.untouched(1, 1)
}

func TestAnApproverWhoChangesTheNamesHasApprovedNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
	id := s.create(wanted{id: "cert-turncoat", profile: "prof-approval", agents: []string{"agent-1"}})
	j := s.job(id, awaitingApproval)
	_, err := s.approve("bob", j.GetId())
	require.NoError(t, err)
	s.job(id, awaitingCSR)
	s.change(id, "bob", named("bob.example.com"))
	s.do(func() {
		s.agentAnswer = func(a string) (string, *typev1.Problem, bool) { return "CSR of " + a, nil, false }
	})
	j = s.job(id, awaitingApproval)
	s.refused("bob", j.GetId())
	_, orders := s.counts()
	require.Zero(t, orders)
}

func TestWhoCreatedACertificateHasAskedForItsJobWhoeverCameFirst(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.do(func() {
		s.agents["agent-1"] = "ONLINE"
		s.certs["cert-race"] = &inventoryv1.CertificateRecord{
			Certificate: &inventoryv1.Certificate{
				Id: "cert-race", DnsNames: []string{"race.example.com"}, IssuerId: "iss-local", ProfileId: "prof-approval", PolicyId: "pol-default",
				Status: inventoryv1.Certificate_PENDING,
			},
			KeyHolders: []*inventoryv1.KeyHolder{{AgentId: "agent-1"}},
		}
	})
	_, err := s.as("carl").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: "cert-race"})
	require.NoError(t, err)
	s.tell("certificate.created", "cert-race", "anna")
	j := s.job("cert-race", awaitingApproval)
	s.refused("carl", j.GetId())
	s.refused("anna", j.GetId())
}

func TestAJobDoesNotWaitForAgentsThatLeft(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(a string) (string, *typev1.Problem, bool) {
		if a == "agent-2" {
			return "", nil, false
		}
		return "CSR of " + a, nil, false
	}
	id := s.create(wanted{id: "cert-left", agents: []string{"agent-1", "agent-2"}})
	require.True(t, eventually(t, func() bool { tasks, orders := s.counts(); return tasks == 2 && orders == 1 }))
	s.change(id, "bob", func(rec *inventoryv1.CertificateRecord) {
		rec.KeyHolders = rec.KeyHolders[:1]
		rec.Certificate.TargetIds = rec.Certificate.TargetIds[:1]
	})
	j := s.job(id, completed, s.nth(1))
	require.Len(t, j.GetKeys(), 1)
	require.Equal(t, "agent-1", j.GetAgentId())
	require.True(t, eventually(t, func() bool { n := 0; s.do(func() { n = len(s.cancelled) }); return n == 1 }), "its task was taken back")
}

func TestAJobWhoseLastTargetLeftWaitsForTheCaller(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
	id := s.create(wanted{id: "cert-bare", agents: []string{"agent-1"}})
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 1 }))
	s.change(id, "bob", func(rec *inventoryv1.CertificateRecord) { rec.KeyHolders, rec.Certificate.TargetIds = nil, nil })
	require.True(t, eventually(t, func() bool { return s.explain(id).GetBlocker().GetReason() == "CSR_REQUIRED" }), "%v", s.explain(id))
	require.True(t, eventually(t, func() bool { n := 0; s.do(func() { n = len(s.cancelled) }); return n == 1 }))
	_, err := s.as("anna").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "mine"})
	require.NoError(t, err)
	s.job(id, completed, s.nth(1))

	// And the other way round: the first target takes the key over from a caller who has not posted a CSR.
	other := s.create(wanted{id: "cert-bound"})
	s.job(other, awaitingCSR)
	s.do(func() {
		s.agentAnswer = func(a string) (string, *typev1.Problem, bool) { return "CSR of " + a, nil, false }
	})
	s.change(other, "bob", func(rec *inventoryv1.CertificateRecord) {
		rec.KeyHolders, rec.Certificate.TargetIds = []*inventoryv1.KeyHolder{{AgentId: "agent-1"}}, []string{"target-agent-1"}
	})
	require.Equal(t, "agent-1", s.job(other, completed, s.nth(1)).GetAgentId())
}

func TestARetiredAgentTakesOnlyItsOwnKeyAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(a string) (string, *typev1.Problem, bool) {
		if a == "agent-2" {
			return "", nil, false
		}
		return "CSR of " + a, nil, false
	}
	retire := func(id string) {
		s.do(func() {
			s.agents["agent-2"] = "RETIRED"
			for task, req := range s.tasks {
				if req.GetAgentId() == "agent-2" {
					s.emit("task.finished", "certificate", id, &inventoryv1.TaskFinished{
						TaskId: task, AgentId: "agent-2", CertificateId: id, Permanent: true, Problem: &typev1.Problem{Reason: "AGENT_RETIRED", Message: "the agent was retired"},
					})
				}
			}
		})
	}
	id := s.create(wanted{id: "cert-pair", agents: []string{"agent-1", "agent-2"}})
	require.True(t, eventually(t, func() bool { tasks, orders := s.counts(); return tasks == 2 && orders == 1 }))
	retire(id)
	require.Equal(t, "agent-1", s.job(id, completed, s.nth(1)).GetAgentId())

	// Alone, it is what the job says, and what explain says of the next one.
	s.do(func() { s.agents["agent-2"] = "ONLINE" })
	alone := s.create(wanted{id: "cert-alone", agents: []string{"agent-2"}})
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 3 }))
	retire(alone)
	j := s.job(alone, failed)
	require.Equal(t, "AGENT_RETIRED", j.GetError().GetReason())
	require.Contains(t, j.GetError().GetMessage(), "agent-2")
	s.until(s.renewTime(alone))
	s.job(alone, awaitingCSR, s.nth(2))
	require.Equal(t, "AGENT_RETIRED", s.explain(alone).GetBlocker().GetReason())
}

func TestARevokedVersionThatIsInUseIsReplaced(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-leaked", agents: []string{"agent-1"}})
	s.job(id, completed)
	revoke := func(version int32) {
		s.do(func() {
			cert, _ := proto.Clone(s.certs[id].GetCertificate()).(*inventoryv1.Certificate)
			s.emit("version.revoked", "certificate", id, &inventoryv1.CertificateChanged{
				Certificate: cert, Actor: &typev1.Actor{Type: typev1.Actor_USER, Id: "bob"}, RevokedVersions: []*inventoryv1.RevokedVersion{{Version: version}},
			})
		})
	}
	revoke(1)
	j := s.job(id, completed, s.nth(2))
	require.Equal(t, schedulerv1.Job_RENEW, j.GetType())
	require.Equal(t, "bob", j.GetRequestedBy())
	revoke(1)
	s.change(id, "bob", func(*inventoryv1.CertificateRecord) {})
	s.calm()
	require.Len(t, s.jobs(id), 2, "a version that is no longer in use needs no replacement")
}

func TestACsrThatIsQuickerThanTheNewsOfItsCertificateIsKept(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const id = "cert-quick"
	s.do(func() {
		s.certs[id] = &inventoryv1.CertificateRecord{Certificate: &inventoryv1.Certificate{
			Id: id, Name: id, DnsNames: []string{id + ".example.com"}, IssuerId: "iss-local", ProfileId: "prof-default", PolicyId: "pol-default",
			Status: inventoryv1.Certificate_PENDING, KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256,
		}}
	})
	free := make(chan struct{})
	s.do(func() { s.hold["BatchGetProfiles"] = free }) // nobody gets to the job in the meantime
	_, err := s.as("bob").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "mine"})
	require.NoError(t, err)
	seen := s.jobs(id)[0].GetRevision()
	s.tell("certificate.created", id, "anna")
	require.True(t, eventually(t, func() bool { return s.jobs(id)[0].GetRevision() > seen }))
	s.do(func() { delete(s.hold, "BatchGetProfiles") })
	close(free)
	s.job(id, completed)
	require.Len(t, s.jobs(id), 1)
}

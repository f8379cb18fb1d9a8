package renewalscheduler_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/renewalscheduler"
)

const (
	slots  = 3 // so few that nearly all work waits for one
	manual = "pol-manual"
)

func TestNobodyIsBehindTheManyJobsOfAnother(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// many makes each of the certificates due, and one has a job for another, which is of the policy.
		policy string
		many   func(s *site, ids []string)
		one    func(s *site, id string)
	}{
		"what somebody asks for and renewals that are due": {
			policy: manual,
			many: func(s *site, ids []string) {
				var last time.Time
				for _, id := range ids {
					if at := s.renewTime(id); at.After(last) {
						last = at
					}
				}
				s.until(last)
			},
			one: func(s *site, id string) {
				_, err := s.as("bert").DeployCertificate(t.Context(), &schedulerv1.DeployCertificateRequest{CertificateId: id})
				require.NoError(t, err)
			},
		},
		"what is due and all that a client asks for": {
			policy: "pol-default",
			many: func(s *site, ids []string) {
				for _, id := range ids {
					_, err := s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id, Force: true})
					require.NoError(t, err)
				}
			},
			one: func(s *site, id string) {
				s.do(func() {
					s.emit("deployment.changed", "certificate", id, &inventoryv1.DeploymentChanged{Deployment: &inventoryv1.Deployment{
						Id: "dep-1", CertificateId: id, TargetId: "target-agent-1", Status: inventoryv1.Deployment_DRIFTED,
					}})
				})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, func(c *renewalscheduler.Config) { c.RenewalConcurrency = slots })
			_, err := s.policies().CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: &schedulerv1.Policy{Id: manual, Name: "By request", Automatic: proto.Bool(false)}})
			require.NoError(t, err)
			var ids []string
			for i := range 4 * slots {
				ids = append(ids, s.create(wanted{id: fmt.Sprintf("cert-%02d", i), agents: []string{"agent-1"}}))
			}
			other := s.create(wanted{id: "cert-other", policy: c.policy, agents: []string{"agent-1"}})
			for _, id := range append(ids, other) {
				s.job(id, completed)
			}
			tasksBefore, _ := s.counts()
			gate := make(chan struct{})
			s.do(func() { s.hold["CreateCsrTask"] = gate })

			c.many(s, ids)
			require.True(t, eventually(t, func() bool { return len(s.open(t.Context())) == len(ids) }))
			require.True(t, eventually(t, func() bool { return s.leased() == slots }), "all slots are taken")
			c.one(s, other)
			require.True(t, eventually(t, func() bool { return len(s.open(t.Context())) == len(ids)+1 }))
			deployments := func() (n int) {
				s.do(func() { n = len(s.requests) })
				return n
			}
			require.Zero(t, deployments(), "there is no slot for it")

			gate <- struct{}{} // one slot is free
			require.True(t, eventually(t, func() bool { return deployments() == 1 }), "the next claim takes it")

			tasks, _ := s.counts()
			require.Equal(t, tasksBefore+1, tasks)
			s.do(func() { delete(s.hold, "CreateCsrTask") })
			close(gate)
		})
	}
}

// open lists the jobs that have not ended.
func (s *site) open(ctx context.Context) (open []*schedulerv1.Job) {
	for _, j := range s.jobsOf(ctx) {
		if j.GetEndTime() == nil {
			open = append(open, j)
		}
	}
	return open
}

// leased counts the jobs that somebody works on.
func (s *site) leased() (n int) {
	s.t.Helper()
	require.NoError(s.t, s.db.Admin(s.t).QueryRow(s.t.Context(), `SELECT count(*) FROM renewalscheduler.jobs WHERE lease_id IS NOT NULL`).Scan(&n))
	return n
}

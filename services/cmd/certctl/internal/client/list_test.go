package client_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// golden compares with a text that is indented by one tab in the test.
func golden(t *testing.T, want, got string) {
	t.Helper()
	require.Equal(t, strings.ReplaceAll(strings.TrimPrefix(want, "\n"), "\t", ""), got)
}

func certificate(id string) *inventoryv1.Certificate {
	return &inventoryv1.Certificate{
		Id: id, Name: "web", DnsNames: []string{"www.example.com", "example.com", "a.example.com"}, IssuerId: "iss-local",
		Status: inventoryv1.Certificate_ACTIVE, CurrentVersion: 3, NotAfter: at(12*day + time.Hour), NotBefore: at(-30 * day),
		ProfileId: "prof-default", PolicyId: "pol-default", TargetIds: []string{"target-web"}, Labels: map[string]string{"b": "2", "a": "1"}, Revision: 7,
	}
}

func TestCertificatesAreListedAsATable(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, inventoryv1.CertificateService_ListCertificates_FullMethodName, &inventoryv1.ListCertificatesRequest{},
		&inventoryv1.ListCertificatesResponse{Certificates: []*inventoryv1.Certificate{
			certificate("cert-0198f0c4-7d1e-7abc-8def-001122334455"),
			{Id: "cert-b", Name: "evil\x1b[2Jname\nx", Status: inventoryv1.Certificate_PENDING},
		}})

	r := g.ok(t, "certificates", "list")

	golden(t, `
	ID                                         NAME                 DNS                             STATUS   VERSION  EXPIRES  ISSUER
	cert-0198f0c4-7d1e-7abc-8def-001122334455  web                  www.example.com,example.com +1  ACTIVE   3        in 12d   iss-local
	cert-b                                     evil\u001b[2Jname x  -                               PENDING  -        -        -
	`, r.out)
	require.Empty(t, r.err)
}

func TestOtherResourcesHaveTablesToo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	problem := &typev1.Problem{Reason: "RELOAD_FAILED", Message: "nginx did not reload"}
	answer(g, inventoryv1.DeploymentService_ListDeployments_FullMethodName, &inventoryv1.ListDeploymentsRequest{},
		&inventoryv1.ListDeploymentsResponse{Deployments: []*inventoryv1.Deployment{{
			Id: "dep-1", CertificateId: "cert-a", TargetId: "target-web", Status: inventoryv1.Deployment_FAILED, DesiredVersion: 2, DeployedVersion: 1, ServedVersion: 1,
			VerifyTime: at(-90 * time.Second), Error: problem,
		}}})
	answer(g, inventoryv1.AgentRegistryService_ListJoinTokens_FullMethodName, &inventoryv1.ListJoinTokensRequest{},
		&inventoryv1.ListJoinTokensResponse{JoinTokens: []*inventoryv1.JoinToken{{Id: "join-1", Uses: 1, MaxUses: 5, ExpireTime: at(time.Hour), CreateTime: at(-time.Hour), CreatedBy: "ops"}}})
	answer(g, schedulerv1.PolicyService_ListPolicies_FullMethodName, &schedulerv1.ListPoliciesRequest{},
		&schedulerv1.ListPoliciesResponse{Policies: []*schedulerv1.Policy{
			{Id: "pol-default", Name: "default", RenewAtFraction: proto.Float64(0.67), Automatic: proto.Bool(true), MaxAttempts: 5},
			{Id: "pol-hand", Name: "by hand", RenewBefore: durationpb.New(30 * day), Automatic: proto.Bool(false)},
		}})
	answer(g, auditv1.AuditService_ListEvents_FullMethodName, &auditv1.ListEventsRequest{},
		&auditv1.ListEventsResponse{Events: []*auditv1.Event{{
			Id: "evt-1", Sequence: 12, Time: at(-time.Hour), Actor: &typev1.Actor{Id: "ops"}, Action: "certificate.created",
			Resource: &auditv1.Resource{Type: "certificate", Id: "cert-a"}, Outcome: auditv1.Event_SUCCESS,
		}}})
	answer(g, inventoryv1.StatsService_GetSummary_FullMethodName, &inventoryv1.GetSummaryRequest{},
		&inventoryv1.GetSummaryResponse{Certificates: map[string]int32{"PENDING": 1, "ACTIVE": 12}, Jobs: map[string]int32{"COMPLETED": 9}, CertificatesExpiring_7D: 2})

	golden(t, `
	ID     CERTIFICATE  TARGET      STATUS  DESIRED  DEPLOYED  SERVED  VERIFIED  ERROR
	dep-1  cert-a       target-web  FAILED  2        1         1       90s ago   RELOAD_FAILED
	`, g.ok(t, "deployments", "list").out)
	golden(t, `
	ID      USES    EXPIRES  CREATED  BY
	join-1  1 of 5  in 60m   60m ago  ops
	`, g.ok(t, "agents", "join-tokens").out)
	golden(t, `
	ID           NAME     RENEWS              AUTOMATIC  ATTEMPTS
	pol-default  default  at 67 %             yes        5
	pol-hand     by hand  30d before the end  no         -
	`, g.ok(t, "policies", "list").out)
	golden(t, `
	SEQUENCE  TIME                  ACTOR  ACTION               RESOURCE  OUTCOME  ID
	12        2026-03-01T11:00:00Z  ops    certificate.created  cert-a    SUCCESS  evt-1
	`, g.ok(t, "audit", "list").out)
	golden(t, `
	WHAT          STATUS          COUNT
	certificates  ACTIVE          12
	certificates  PENDING         1
	jobs          COMPLETED       9
	certificates  end within 7d   2
	certificates  end within 30d  0
	rows          stuck           0
	`, g.ok(t, "stats").out)
}

func TestGetDescribesAllFieldsThatAreSet(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	config, err := structpb.NewStruct(map[string]any{"key_path": "/k", "command": []any{"/bin/true"}})
	require.NoError(t, err)
	answer(g, inventoryv1.TargetService_GetTarget_FullMethodName, &inventoryv1.GetTargetRequest{}, &inventoryv1.GetTargetResponse{Target: &inventoryv1.Target{
		Id: "target-web", Name: "web", AgentId: "agent-1", Type: "nginx", Config: config,
		Endpoint: &typev1.Endpoint{Address: "127.0.0.1:8444", Starttls: typev1.Endpoint_SMTP}, CreateTime: at(-3 * day), Revision: 2,
	}})
	answer(g, schedulerv1.JobService_GetJob_FullMethodName, &schedulerv1.GetJobRequest{}, &schedulerv1.GetJobResponse{Job: &schedulerv1.Job{
		Id: "job-1", Type: schedulerv1.Job_RENEW, Keys: []*schedulerv1.JobKey{
			{AgentId: "agent-1", Status: schedulerv1.JobKey_DONE, Version: 2}, {AgentId: "agent-2", Status: schedulerv1.JobKey_AWAITING_CSR},
		},
	}})

	golden(t, `
	id:           target-web
	name:         web
	agent_id:     agent-1
	type:         nginx
	config:
	  command:    ["/bin/true"]
	  key_path:   /k
	endpoint:
	  address:    127.0.0.1:8444
	  starttls:   SMTP
	create_time:  2026-02-26T12:00:00Z (3d ago)
	revision:     2
	`, g.ok(t, "targets", "get", "target-web").out)
	golden(t, `
	id:            job-1
	type:          RENEW
	keys:
	  - agent_id:  agent-1
	    status:    DONE
	    version:   2
	  - agent_id:  agent-2
	    status:    AWAITING_CSR
	`, g.ok(t, "jobs", "get", "job-1").out)
}

func TestJSONAndYAMLAreThoseOfTheREST(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.ProfileService_GetProfile_FullMethodName, &issuancev1.GetProfileRequest{}, &issuancev1.GetProfileResponse{Profile: &issuancev1.Profile{
		Id: "prof-1", Name: "true", Description: "two\nlines", MaxValidity: durationpb.New(time.Hour), ExtendedKeyUsages: []issuancev1.Profile_ExtendedKeyUsage{issuancev1.Profile_SERVER_AUTH},
	}})
	answer(g, issuancev1.ProfileService_ListProfiles_FullMethodName, &issuancev1.ListProfilesRequest{}, &issuancev1.ListProfilesResponse{NextPageToken: "more"})

	golden(t, `
	{
	  "id": "prof-1",
	  "name": "true",
	  "description": "two\nlines",
	  "allowed_san_patterns": [],
	  "allow_wildcards": false,
	  "allowed_key_algorithms": [],
	  "extended_key_usages": [
	    "SERVER_AUTH"
	  ],
	  "max_validity": "3600s",
	  "requires_approval": false,
	  "approval_timeout": null,
	  "create_time": null,
	  "update_time": null,
	  "revision": 0
	}
	`, g.ok(t, "profiles", "get", "prof-1", "-o", "json").out)
	golden(t, `
	id: prof-1
	name: "true"
	description: |-
	  two
	  lines
	allowed_san_patterns: []
	allow_wildcards: false
	allowed_key_algorithms: []
	extended_key_usages:
	  - SERVER_AUTH
	max_validity: 3600s
	requires_approval: false
	approval_timeout: null
	create_time: null
	update_time: null
	revision: 0
	`, g.ok(t, "profiles", "get", "prof-1", "-o", "yaml").out)
	require.JSONEq(t, `{"profiles":[],"next_page_token":"more"}`, g.ok(t, "profiles", "list", "-o", "json").out)
	require.Equal(t, "prof-1\n", g.ok(t, "profiles", "get", "prof-1", "-o", "name").out)
}

// pagesOf answers certificates c0, c1, … in pages of the size that is asked.
func pagesOf(g *gateway, n int) {
	on(g, inventoryv1.CertificateService_ListCertificates_FullMethodName, func(r *inventoryv1.ListCertificatesRequest) (*inventoryv1.ListCertificatesResponse, error) {
		start, size := 0, int(r.GetPageSize())
		if r.GetPageToken() != "" {
			_, _ = fmt.Sscanf(r.GetPageToken(), "at-%d", &start)
		}
		if size == 0 {
			size = 50
		}
		resp := &inventoryv1.ListCertificatesResponse{}
		for i := start; i < min(n, start+size); i++ {
			resp.Certificates = append(resp.Certificates, &inventoryv1.Certificate{Id: fmt.Sprintf("c%d", i)})
		}
		if start+size < n {
			resp.NextPageToken = fmt.Sprintf("at-%d", start+size)
		}
		if r.GetIncludeTotal() {
			resp.TotalSize = proto.Int32(int32(n))
		}
		return resp, nil
	})
}

func TestAPageThatIsNotAllSaysSoOnStandardError(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	pagesOf(g, 60)

	r := g.ok(t, "certificates", "list", "-o", "name")
	require.Equal(t, 50, strings.Count(r.out, "\n"))
	require.Equal(t, "showing 50; use --all or --page-size, or go on with --page-token at-50\n", r.err)

	r = g.ok(t, "certificates", "list", "-o", "name", "--page-token", "at-50")
	require.True(t, strings.HasPrefix(r.out, "c50\n"))
	require.Empty(t, r.err)

	r = g.ok(t, "certificates", "list", "--page-size", "2", "--total")
	require.Equal(t, "showing 2 of 60; use --all or --page-size, or go on with --page-token at-2\n", r.err)
}

func TestAllGoesThroughAllPages(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	pagesOf(g, 7)

	r := g.ok(t, "certificates", "list", "--all", "--page-size", "3", "-o", "name")

	require.Equal(t, "c0\nc1\nc2\nc3\nc4\nc5\nc6\n", r.out)
	require.Empty(t, r.err)
	require.Len(t, requests[*inventoryv1.ListCertificatesRequest](g, inventoryv1.CertificateService_ListCertificates_FullMethodName), 3)
	require.JSONEq(t, `""`, jsonField(t, g.ok(t, "certificates", "list", "--all", "--page-size", "3", "-o", "json").out, "next_page_token"))
}

func TestFiltersAreSentAsTheirFieldsTypes(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	pagesOf(g, 0)

	r := g.ok(t, "certificates", "list", "--status", "active,EXPIRED", "--issuer", "iss-1", "--label", "team=web", "--label", "tier=1",
		"--expires-before", "+30d", "--expires-after", "2026-01-31", "--order-by", "not_after desc")

	require.Equal(t, "nothing found\n", r.err)
	got := requests[*inventoryv1.ListCertificatesRequest](g, inventoryv1.CertificateService_ListCertificates_FullMethodName)[0]
	want := &inventoryv1.ListCertificatesRequest{
		Status: []inventoryv1.Certificate_Status{inventoryv1.Certificate_ACTIVE, inventoryv1.Certificate_EXPIRED}, IssuerId: "iss-1",
		Label: map[string]string{"team": "web", "tier": "1"}, ExpiresBefore: at(30 * day), OrderBy: "not_after desc",
		ExpiresAfter: at(time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC).Sub(now)),
	}
	require.True(t, proto.Equal(want, got), "got %v", got)
}

func TestVersionsAreThoseOfOneCertificate(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, inventoryv1.CertificateService_ListCertificateVersions_FullMethodName, &inventoryv1.ListCertificateVersionsRequest{},
		&inventoryv1.ListCertificateVersionsResponse{Versions: []*inventoryv1.CertificateVersion{{
			Version: 2, SerialNumber: "ab12", KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256, AgentId: "agent-1", CreateTime: at(-time.Minute), NotAfter: at(time.Hour),
		}, {
			Version: 1, SerialNumber: "ab11", KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256, AgentId: "agent-1", CreateTime: at(-day), NotAfter: at(time.Hour),
			RevocationReason: "SUPERSEDED", RevocationState: inventoryv1.Revocation_FAILED, RevocationError: "an administrator rejected request 7",
		}}})

	r := g.ok(t, "certificates", "versions", "cert-a")

	golden(t, `
	VERSION  SERIAL  KEY         AGENT    CREATED  EXPIRES  REVOKED     AT THE CA  WHY NOT
	2        ab12    ECDSA_P256  agent-1  60s ago  in 60m   -           -          -
	1        ab11    ECDSA_P256  agent-1  24h ago  in 60m   SUPERSEDED  FAILED     an administrator rejected request 7
	`, r.out)
	require.Equal(t, "cert-a", requests[*inventoryv1.ListCertificateVersionsRequest](g, inventoryv1.CertificateService_ListCertificateVersions_FullMethodName)[0].GetCertificateId())
}

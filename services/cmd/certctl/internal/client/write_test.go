package client_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

func jsonField(t *testing.T, text, name string) string {
	t.Helper()
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(text), &fields))
	return string(fields[name])
}

func structOf(t *testing.T, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	require.NoError(t, err)
	return s
}

// echo answers a create with what was sent.
func echoTargets(g *gateway) {
	on(g, inventoryv1.TargetService_CreateTarget_FullMethodName, func(r *inventoryv1.CreateTargetRequest) (*inventoryv1.CreateTargetResponse, error) {
		return &inventoryv1.CreateTargetResponse{Target: r.GetTarget()}, nil
	})
	on(g, inventoryv1.TargetService_UpdateTarget_FullMethodName, func(r *inventoryv1.UpdateTargetRequest) (*inventoryv1.UpdateTargetResponse, error) {
		return &inventoryv1.UpdateTargetResponse{Target: r.GetTarget()}, nil
	})
}

func createdTarget(t *testing.T, g *gateway) *inventoryv1.CreateTargetRequest {
	t.Helper()
	all := requests[*inventoryv1.CreateTargetRequest](g, inventoryv1.TargetService_CreateTarget_FullMethodName)
	require.NotEmpty(t, all)
	return all[len(all)-1]
}

func TestATargetIsCreatedFromFlags(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoTargets(g)
	secret := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(secret, []byte("hunter2\n"), 0o600))

	r := g.ok(t, "targets", "create", "--id", "target-web", "--name", "web", "--agent", "agent-1", "--type", "nginx", "--endpoint", "127.0.0.1:8444",
		"--server-name", "www.example.com", "--starttls", "smtp", "--set", "fullchain_path=/a=b", "--set", "mode=0640",
		"--set-json", `command=["/bin/true","x"]`, "--set-file", "password="+secret)

	want := &inventoryv1.Target{
		Id: "target-web", Name: "web", AgentId: "agent-1", Type: "nginx",
		Endpoint: &typev1.Endpoint{Address: "127.0.0.1:8444", ServerName: "www.example.com", Starttls: typev1.Endpoint_SMTP},
		Config:   structOf(t, map[string]any{"fullchain_path": "/a=b", "mode": "0640", "command": []any{"/bin/true", "x"}, "password": "hunter2"}),
	}
	got := createdTarget(t, g)
	require.True(t, proto.Equal(want, got.GetTarget()), "got %v", got)
	require.Len(t, got.GetRequestId(), 36)
	golden(t, `
	ID          NAME  TYPE   AGENT    ENDPOINT
	target-web  web   nginx  agent-1  127.0.0.1:8444
	`, r.out)
}

func TestAResourceComesFromAFileAndFlagsWinOverIt(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoTargets(g)
	want := &inventoryv1.Target{Name: "other", AgentId: "agent-1", Type: "file", Config: structOf(t, map[string]any{"key_path": "/k", "mode": "0600"})}
	for name, text := range map[string]string{
		"JSON":             `{"name":"web","agent_id":"agent-1","type":"file","config":{"key_path":"/k"}}`,
		"YAML":             "name: web\nagent_id: agent-1\ntype: file\nconfig:\n  key_path: /k\n",
		"YAML, JSON names": "name: web\nagentId: agent-1\ntype: file\nconfig: {key_path: /k}\n",
	} {
		p := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, input: text}
		require.NoError(t, p.run(t, "targets", "create", "-f", "-", "--name", "other", "--set", "mode=0600").failure, name)
		got := createdTarget(t, g).GetTarget()
		require.True(t, proto.Equal(want, got), "%s: got %v", name, got)
	}
}

func TestAFileThatIsNotRightIsAUsageError(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoTargets(g)
	for text, want := range map[string]string{
		"":                              "-: there is no resource in it",
		"name: [":                       "-: yaml:",
		"nome: web":                     `unknown field "nome"`,
		"name: a\n---\nname: b\n":       "more than one resource",
		"[1]":                           "cannot unmarshal",
		`{"type":["nginx"]}`:            "type",
		"create_time: 2026-01-01T1Z":    "google.protobuf.Timestamp",
		`{"endpoint":{"starttls":"X"}}`: "starttls",
	} {
		r := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, input: text}.run(t, "targets", "create", "-f", "-")
		require.ErrorContains(t, r.failure, want, text)
		require.Equal(t, 2, r.code, text)
	}
	require.Empty(t, requests[*inventoryv1.CreateTargetRequest](g, inventoryv1.TargetService_CreateTarget_FullMethodName))
}

func TestAnUpdateSendsOnlyWhatWasGiven(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	on(g, inventoryv1.CertificateService_UpdateCertificate_FullMethodName, func(r *inventoryv1.UpdateCertificateRequest) (*inventoryv1.UpdateCertificateResponse, error) {
		return &inventoryv1.UpdateCertificateResponse{Certificate: r.GetCertificate()}, nil
	})

	g.ok(t, "certificates", "update", "cert-a", "--owner", "", "--target", "t1,t2", "--target", "t3", "--label", "a=1", "--if-revision", "4")

	got := requests[*inventoryv1.UpdateCertificateRequest](g, inventoryv1.CertificateService_UpdateCertificate_FullMethodName)[0]
	require.Equal(t, []string{"labels", "owner", "target_ids"}, got.GetUpdateMask().GetPaths())
	require.Equal(t, int32(4), got.GetIfRevision())
	want := &inventoryv1.Certificate{Id: "cert-a", TargetIds: []string{"t1", "t2", "t3"}, Labels: map[string]string{"a": "1"}}
	require.True(t, proto.Equal(want, got.GetCertificate()), "got %v", got)

	r := g.run(t, "certificates", "update", "cert-a")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "nothing to change")
}

func TestOneEntryOfAConfigurationIsChangedWithinTheRest(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoTargets(g)
	answer(g, inventoryv1.TargetService_GetTarget_FullMethodName, &inventoryv1.GetTargetRequest{}, &inventoryv1.GetTargetResponse{Target: &inventoryv1.Target{
		Id: "target-web", Name: "web", Config: structOf(t, map[string]any{"key_path": "/k", "mode": "0600"}), Revision: 9,
	}})

	g.ok(t, "targets", "update", "target-web", "--set", "mode=0640", "--endpoint", "127.0.0.1:1")

	got := requests[*inventoryv1.UpdateTargetRequest](g, inventoryv1.TargetService_UpdateTarget_FullMethodName)[0]
	require.Equal(t, []string{"config", "endpoint.address"}, got.GetUpdateMask().GetPaths())
	require.Equal(t, int32(9), got.GetIfRevision())
	want := &inventoryv1.Target{Id: "target-web", Endpoint: &typev1.Endpoint{Address: "127.0.0.1:1"}, Config: structOf(t, map[string]any{"key_path": "/k", "mode": "0640"})}
	require.True(t, proto.Equal(want, got.GetTarget()), "got %v", got)
}

func TestAnUpdateFromAFileChangesTheFieldsInIt(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoTargets(g)
	p := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, input: `{"id":"target-web","name":"web","config":{"key_path":"/k"}}`}

	require.NoError(t, p.run(t, "targets", "update", "target-web", "-f", "-").failure)

	got := requests[*inventoryv1.UpdateTargetRequest](g, inventoryv1.TargetService_UpdateTarget_FullMethodName)[0]
	require.Equal(t, []string{"config", "name"}, got.GetUpdateMask().GetPaths())
	r := p.run(t, "targets", "update", "target-other", "-f", "-")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "is about target-web, not about target-other")
}

func TestAProfileTakesDurationsWithDays(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	on(g, issuancev1.ProfileService_CreateProfile_FullMethodName, func(r *issuancev1.CreateProfileRequest) (*issuancev1.CreateProfileResponse, error) {
		return &issuancev1.CreateProfileResponse{Profile: r.GetProfile()}, nil
	})

	r := g.ok(t, "profiles", "create", "--name", "short", "--max-validity", "1d12h", "--requires-approval", "--allow-san", "*.example.com", "--eku", "server-auth,client_auth")

	got := requests[*issuancev1.CreateProfileRequest](g, issuancev1.ProfileService_CreateProfile_FullMethodName)[0].GetProfile()
	require.True(t, proto.Equal(durationpb.New(36*time.Hour), got.GetMaxValidity()))
	require.True(t, got.GetRequiresApproval())
	require.Len(t, got.GetExtendedKeyUsages(), 2)
	golden(t, `
	ID  NAME   VALIDITY   NAMES          APPROVAL
	-   short  1d12h0m0s  *.example.com  yes
	`, r.out)
}

func TestAWriteIsRepeatedOnceWithTheSameRequestID(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	fails := 1
	on(g, schedulerv1.JobService_RenewCertificate_FullMethodName, func(*schedulerv1.RenewCertificateRequest) (*schedulerv1.RenewCertificateResponse, error) {
		if fails > 0 {
			fails--
			return nil, errs.New(errs.Unavailable, "SERVICE_AWAY", "renewalscheduler does not answer")
		}
		return &schedulerv1.RenewCertificateResponse{Job: &schedulerv1.Job{Id: "job-1"}}, nil
	})

	g.ok(t, "certificates", "renew", "cert-a", "--force")
	sent := requests[*schedulerv1.RenewCertificateRequest](g, schedulerv1.JobService_RenewCertificate_FullMethodName)
	require.Len(t, sent, 2)
	require.True(t, proto.Equal(sent[0], sent[1]))
	require.NotEmpty(t, sent[0].GetRequestId())
	require.True(t, sent[0].GetForce())

	fails = 2
	r := g.run(t, "certificates", "renew", "cert-a")
	require.Equal(t, 1, r.code)
	require.EqualError(t, r.failure, "renewalscheduler does not answer\ntry again in a moment")
	require.Len(t, requests[*schedulerv1.RenewCertificateRequest](g, schedulerv1.JobService_RenewCertificate_FullMethodName), 4)
}

func TestDestructiveCommandsAskAtATerminal(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.IssuerService_DeleteIssuer_FullMethodName, &issuancev1.DeleteIssuerRequest{}, &issuancev1.DeleteIssuerResponse{})
	deleted := func() int {
		return len(requests[*issuancev1.DeleteIssuerRequest](g, issuancev1.IssuerService_DeleteIssuer_FullMethodName))
	}
	p := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, interactive: true}

	for _, input := range []string{"", "n\n", "\n"} {
		p.input = input
		r := p.run(t, "issuers", "delete", "iss-1")
		require.ErrorContains(t, r.failure, "not done")
		require.Equal(t, 1, r.code)
		require.Equal(t, "Delete issuer iss-1? [y/N] ", r.err)
		require.Zero(t, deleted())
	}
	p.input = "Yes\n"
	require.Equal(t, "issuer iss-1 deleted\n", p.run(t, "issuers", "delete", "iss-1").out)
	require.Equal(t, 1, deleted())

	p.input = ""
	require.NoError(t, p.run(t, "issuers", "delete", "iss-1", "--yes").failure)
	p.interactive = false
	require.Equal(t, "{}\n", p.run(t, "issuers", "delete", "iss-1", "-o", "json").out)
	require.Equal(t, 3, deleted())
}

func TestACertificateIsRevokedWithAReason(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, inventoryv1.CertificateService_RevokeCertificate_FullMethodName, &inventoryv1.RevokeCertificateRequest{},
		&inventoryv1.RevokeCertificateResponse{Revocation: &inventoryv1.Revocation{
			CertificateId: "cert-a", State: inventoryv1.Revocation_REVOKED, Reason: "KEY_COMPROMISE", Versions: []*inventoryv1.RevokedVersion{{Version: 1, SerialNumber: "ab"}},
		}})

	r := g.run(t, "certificates", "revoke", "cert-a")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, `required flag(s) "reason" not set`)
	r = g.run(t, "certificates", "revoke", "cert-a", "--reason", "bad")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "write one of KEY_COMPROMISE, CA_COMPROMISE")

	golden(t, `
	certificate_id:     cert-a
	state:              REVOKED
	reason:             KEY_COMPROMISE
	versions:
	  - version:        1
	    serial_number:  ab
	`, g.ok(t, "certificates", "revoke", "cert-a", "--reason", "key-compromise").out)
}

func TestARevocationThatTheCAHasNotCarriedOutSaysSo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	state := inventoryv1.Revocation_PENDING
	on(g, inventoryv1.CertificateService_RevokeCertificate_FullMethodName, func(*inventoryv1.RevokeCertificateRequest) (*inventoryv1.RevokeCertificateResponse, error) {
		return &inventoryv1.RevokeCertificateResponse{Revocation: &inventoryv1.Revocation{CertificateId: "cert-a", State: state, Reason: "SUPERSEDED"}}, nil
	})
	revoke := []string{"certificates", "revoke", "cert-a", "--reason", "superseded"}

	r := g.ok(t, revoke...)
	require.Contains(t, r.out, "state:           PENDING\n")
	require.Equal(t, "the revocation is stored, and the CA is told until it has revoked; see how it goes with: certctl certificates versions cert-a\n", r.err)

	state = inventoryv1.Revocation_AWAITING_APPROVAL
	require.Equal(t, "nothing is revoked until somebody at the CA has approved it; see how it goes with: certctl certificates versions cert-a\n", g.ok(t, revoke...).err)

	state = inventoryv1.Revocation_FAILED
	r = g.run(t, revoke...)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.out, "FAILED")
	require.ErrorContains(t, r.failure, "the CA has not revoked cert-a\nsee why with: certctl certificates versions cert-a")
}

func TestACertificateIsDownloaded(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	current := certificate("cert-a")
	on(g, inventoryv1.CertificateService_GetCertificate_FullMethodName, func(*inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
		return &inventoryv1.GetCertificateResponse{Certificate: current}, nil
	})
	answer(g, inventoryv1.CertificateService_DownloadCertificateVersion_FullMethodName, &inventoryv1.DownloadCertificateVersionRequest{}, &httpbody.HttpBody{Data: []byte("PEM\n")})

	require.Equal(t, "PEM\n", g.ok(t, "certificates", "download", "cert-a").out)
	path := filepath.Join(t.TempDir(), "chain.pem")
	require.Empty(t, g.ok(t, "certificates", "download", "cert-a", "--version", "2", "--to", path).out)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "PEM\n", string(b))
	sent := requests[*inventoryv1.DownloadCertificateVersionRequest](g, inventoryv1.CertificateService_DownloadCertificateVersion_FullMethodName)
	require.Equal(t, []int32{3, 2}, []int32{sent[0].GetVersion(), sent[1].GetVersion()})

	current = &inventoryv1.Certificate{Id: "cert-a"}
	r := g.run(t, "certificates", "download", "cert-a")
	require.Equal(t, 3, r.code)
	require.ErrorContains(t, r.failure, "certctl certificates explain cert-a")
}

func TestACSRIsSentFromAFile(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, schedulerv1.JobService_SubmitCsr_FullMethodName, &schedulerv1.SubmitCsrRequest{}, &schedulerv1.SubmitCsrResponse{Job: &schedulerv1.Job{Id: "job-1"}})
	p := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, input: "-----BEGIN"}

	require.Equal(t, "job-1\n", p.run(t, "certificates", "csr", "cert-a", "-f", "-", "-o", "name").out)

	require.Equal(t, "-----BEGIN", requests[*schedulerv1.SubmitCsrRequest](g, schedulerv1.JobService_SubmitCsr_FullMethodName)[0].GetCsrPem())
}

func TestAJoinTokenComesWithTheCommandForTheHost(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, inventoryv1.AgentRegistryService_CreateJoinToken_FullMethodName, &inventoryv1.CreateJoinTokenRequest{},
		&inventoryv1.CreateJoinTokenResponse{JoinToken: &inventoryv1.JoinToken{Id: "join-1", Token: "secret", MaxUses: 3}})

	r := g.ok(t, "agents", "join-token", "--uses", "3", "--ttl", "7d")

	golden(t, `
	id:        join-1
	token:     secret
	max_uses:  3
	`, r.out)
	require.Contains(t, r.err, "certctl-agent run --server "+g.url+" --join-token secret --server-ca ca.crt")
	sent := requests[*inventoryv1.CreateJoinTokenRequest](g, inventoryv1.AgentRegistryService_CreateJoinToken_FullMethodName)[0]
	require.Equal(t, 7*day, sent.GetTtl().AsDuration())
	require.Equal(t, int32(3), sent.GetMaxUses())
}

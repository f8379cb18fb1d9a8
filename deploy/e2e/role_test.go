package e2e_test

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/certctl/certctl/pkg/testpg"
)

// roleTooSmall is the refusal of a role.
func roleTooSmall() refusal { return refusal{status: 403, code: 7, reason: "ROLE_NOT_ALLOWED"} }

func TestRolesAndApprovalsHold(t *testing.T) {
	t.Parallel()
	in := startOne(t, people)
	in.must(t, http.MethodPost, "/api/v1/profiles", object{"id": "guarded", "name": "guarded", "max_validity": "3600s", "requires_approval": true})
	in.must(t, http.MethodPost, "/api/v1/policies", object{"id": "by-hand", "name": "by hand", "automatic": false})
	in.wants(t, object{"id": "mine", "dns_names": []string{"mine.example.com"}})
	in.fallsDueSoon(t)

	t.Run("keys", in.keysAreNeeded)
	t.Run("a role that is too small", in.rolesAreChecked)
	t.Run("what a role may", in.rolesMay)
	t.Run("nobody becomes another by headers", in.headersAreNotBelieved)
	t.Run("gRPC", in.grpcIsGuarded)
	t.Run("nobody approves what they asked for", in.approvalTakesTwo)
	t.Run("a renewal waits too", in.renewalWaits)
	t.Run("a rejected job never runs", in.rejectedNeverRuns)
	t.Run("a scheduled renewal waits too", in.scheduledRenewalWaits)
	t.Run("an agent makes no key before the approval", in.agentWaits)
	t.Run("explained", in.explains)
}

func (in *installation) keysAreNeeded(t *testing.T) {
	missing := refusal{status: 401, code: 16, reason: "CREDENTIAL_MISSING"}
	wrong := refusal{status: 401, code: 16, reason: "CREDENTIAL_NOT_VALID"}
	in.refuses(t, []problem{
		{"no key", call{method: http.MethodGet, path: "/api/v1/certificates", key: nobody}, missing},
		{"no key for a change", call{method: http.MethodPost, path: "/api/v1/certificates", key: nobody, body: object{}}, missing},
		{"wrong key", call{method: http.MethodGet, path: "/api/v1/certificates", key: "key-of-nobody-0123456789"}, wrong},
		{"the beginning of a key", call{method: http.MethodGet, path: "/api/v1/certificates", key: rootKey[:len(rootKey)-1]}, wrong},
		{"a key with its name", call{method: http.MethodGet, path: "/api/v1/certificates", key: "root:admin:" + rootKey}, wrong},
	})
	a := in.send(t, call{method: http.MethodGet, path: "/api/v1/version", key: nobody})
	require.Contains(t, a.header.Get("WWW-Authenticate"), "Bearer")
	for _, path := range []string{"/health", "/ready", "/openapi.json", "/docs", "/ca/iss-local.pem", "/crl/iss-local.crl"} {
		require.Equal(t, http.StatusOK, in.send(t, call{method: http.MethodGet, path: path, key: nobody}).status, path)
	}
}

func (in *installation) rolesAreChecked(t *testing.T) {
	changes := []call{
		post("/api/v1/certificates", object{"name": "x", "dns_names": []string{"x.example.com"}, "issuer_id": "iss-local"}),
		{method: http.MethodPatch, path: "/api/v1/certificates/mine", body: object{"owner": "x"}},
		{method: http.MethodDelete, path: "/api/v1/certificates/mine"},
		post("/api/v1/certificates/mine/renew", object{"force": true}),
		post("/api/v1/certificates/mine/csr", object{"csr_pem": "x"}),
		post("/api/v1/certificates/mine/revoke", object{"reason": "SUPERSEDED"}),
		post("/api/v1/certificates/mine/deploy", object{}),
		post("/api/v1/targets", object{"name": "x", "type": "file", "agent_id": "x"}),
		post("/api/v1/agents/join-tokens", object{}),
		get("/api/v1/agents/join-tokens"),
		{method: http.MethodDelete, path: "/api/v1/agents/none"},
		post("/api/v1/jobs/none/cancel", object{}),
		post("/api/v1/jobs/none/retry", object{}),
		post("/api/v1/jobs/none/approve", object{}),
		post("/api/v1/jobs/none/reject", object{}),
		post("/api/v1/orders/none/poll", object{}),
		post("/api/v1/orders/none/cancel", object{}),
		post("/api/v1/orders/none/adopt", object{}),
		post("/api/v1/orders/none/dismiss", object{}),
		post("/api/v1/issuers/iss-local/test", object{}),
	}
	settings := []call{
		post("/api/v1/issuers", object{"name": "x", "type": "local"}),
		{method: http.MethodPatch, path: "/api/v1/issuers/iss-local", body: object{"enabled": false}},
		{method: http.MethodDelete, path: "/api/v1/issuers/iss-local"},
		post("/api/v1/profiles", object{"name": "x"}),
		{method: http.MethodPatch, path: "/api/v1/profiles/guarded", body: object{"requires_approval": false}},
		{method: http.MethodDelete, path: "/api/v1/profiles/guarded"},
		post("/api/v1/policies", object{"name": "x"}),
		{method: http.MethodPatch, path: "/api/v1/policies/by-hand", body: object{"automatic": true}},
		{method: http.MethodDelete, path: "/api/v1/policies/by-hand"},
	}
	record := []call{get("/api/v1/audit"), get("/api/v1/audit/evt-none"), get("/api/v1/audit/checkpoint"), post("/api/v1/audit/verify", object{})}
	var problems []problem
	refused := func(who, key string, calls ...call) {
		for _, c := range calls {
			c.key = key
			problems = append(problems, problem{who + " " + c.method + " " + c.path, c, roleTooSmall()})
		}
	}
	refused("viewer", viewerKey, changes...)
	refused("viewer", viewerKey, settings...)
	refused("viewer", viewerKey, record...)
	refused("auditor", auditKey, changes...)
	refused("auditor", auditKey, settings...)
	refused("operator", aliceKey, settings...)
	refused("operator", aliceKey, record...)
	in.refuses(t, problems)
	require.Equal(t, "PENDING", in.get(t, "/api/v1/certificates/mine").object(t).str("status"))
}

func (in *installation) rolesMay(t *testing.T) {
	for key, who := range map[string]object{
		rootKey: {"name": "root", "role": "admin"}, aliceKey: {"name": "alice", "role": "operator"},
		viewerKey: {"name": "vera", "role": "viewer"}, auditKey: {"name": "otto", "role": "auditor"},
	} {
		as := in.as(key)
		require.Equal(t, who, as.get(t, "/api/v1/auth/check").object(t))
		for path, collection := range listed() {
			if collection == "versions" || collection == "events" || collection == "join_tokens" {
				continue
			}
			require.Equal(t, http.StatusOK, as.get(t, path).status, "%s as %s", path, who.str("role"))
		}
		require.Equal(t, http.StatusOK, as.get(t, "/api/v1/certificates/mine/explain").status)
	}
	for _, key := range []string{rootKey, auditKey} {
		require.Equal(t, http.StatusOK, in.as(key).get(t, "/api/v1/audit").status)
		require.Equal(t, true, in.send(t, call{method: http.MethodPost, path: "/api/v1/audit/verify", key: key, body: object{}}).object(t)["valid"])
	}
	require.Equal(t, http.StatusOK, in.as(aliceKey).get(t, "/api/v1/agents/join-tokens").status)
}

// asAdmin is a caller as the gateway would tell it to a service.
func asAdmin() string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"type":"user","id":"root","role":"admin","Type":"user","ID":"root","Role":"admin"}`))
}

func (in *installation) headersAreNotBelieved(t *testing.T) {
	for _, prefix := range []string{"", "Grpc-Metadata-", "grpcgateway-", "Grpc-Metadata-Grpcgateway-"} {
		forged := map[string]string{
			prefix + "certctl-caller": asAdmin(), prefix + "certctl-credential": rootKey, prefix + "certctl-peer-address": "127.0.0.1",
			"X-Forwarded-User": "root", "X-Remote-User": "root", "X-Forwarded-For": "127.0.0.1",
		}
		if prefix != "" {
			forged[prefix+"authorization"] = "Bearer " + rootKey
		}
		in.send(t, call{method: http.MethodPost, path: "/api/v1/profiles", key: viewerKey, header: forged, body: object{"name": "x"}}).refused(t, roleTooSmall())
		in.send(t, call{method: http.MethodGet, path: "/api/v1/audit", key: viewerKey, header: forged}).refused(t, roleTooSmall())
		who := in.send(t, call{method: http.MethodGet, path: "/api/v1/auth/check", key: viewerKey, header: forged}).object(t)
		require.Equal(t, object{"name": "vera", "role": "viewer"}, who)
	}
	forged := map[string]string{"X-HTTP-Method-Override": http.MethodDelete}
	in.send(t, call{method: http.MethodPost, path: "/api/v1/certificates/mine", header: forged}).refused(t, refusal{status: 405, code: 12, reason: "METHOD_NOT_ALLOWED"})
	a := in.send(t, call{method: http.MethodGet, path: "/api/v1/certificates/mine", header: forged})
	require.Equal(t, "PENDING", a.object(t).str("status"))
}

// invoke calls a method over gRPC with a message without fields.
func (in *installation) invoke(t *testing.T, conn *grpc.ClientConn, method string, md ...string) codes.Code {
	t.Helper()
	ctx := metadata.NewOutgoingContext(t.Context(), metadata.Pairs(md...))
	return status.Code(conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}))
}

func (in *installation) grpcIsGuarded(t *testing.T) {
	transport, _ := in.client.Transport.(*http.Transport)
	tlsConfig := &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs, MinVersion: tls.VersionTLS13}
	conn, err := grpc.NewClient(in.url[len("https://"):], grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	const summary, listEvents, createProfile = "/certctl.inventory.v1.StatsService/GetSummary", "/certctl.audit.v1.AuditService/ListEvents", "/certctl.issuance.v1.ProfileService/CreateProfile"
	bearer := func(key string) []string { return []string{"authorization", "Bearer " + key} }

	require.Equal(t, codes.OK, in.invoke(t, conn, summary, bearer(viewerKey)...))
	require.Equal(t, codes.OK, in.invoke(t, conn, listEvents, bearer(auditKey)...))
	require.Equal(t, codes.Unauthenticated, in.invoke(t, conn, summary))
	require.Equal(t, codes.Unauthenticated, in.invoke(t, conn, summary, bearer("key-of-nobody-0123456789")...))
	require.Equal(t, codes.PermissionDenied, in.invoke(t, conn, listEvents, bearer(viewerKey)...))
	forged := append(bearer(viewerKey), "certctl-caller", asAdmin(), "certctl-credential", rootKey)
	require.Equal(t, codes.PermissionDenied, in.invoke(t, conn, createProfile, forged...))
	require.Equal(t, codes.PermissionDenied, in.invoke(t, conn, listEvents, forged...))
	require.Equal(t, codes.InvalidArgument, in.invoke(t, conn, createProfile, bearer(rootKey)...), "an admin gets as far as what is wrong with the message")

	for _, method := range []string{
		"/certctl.inventory.v1.InventoryInternalService/BatchGetCertificates", "/certctl.inventory.v1.InventoryInternalService/CreateCsrTask",
		"/certctl.issuance.v1.IssuanceInternalService/SubmitOrder", "/certctl.issuance.v1.IssuanceInternalService/GetIssuerCredentials",
		"/certctl.renewalscheduler.v1.SchedulerInternalService/CountJobs", "/certctl.asyncpoller.v1.PollService/CreatePoll",
		"/certctl.event.v1.EventSinkService/Deliver", "/certctl.event.v1.RevisionService/GetRevision", "/certctl.none.v1.NoService/None",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		require.Equal(t, codes.Unimplemented, in.invoke(t, conn, method, bearer(rootKey)...), method)
		a := in.send(t, call{method: http.MethodPost, path: method, body: object{}})
		a.refused(t, refusal{status: 404, code: 5, reason: "PATH_NOT_FOUND"})
	}
}

func (in *installation) ordersOf(t *testing.T, job string) []object {
	t.Helper()
	return in.must(t, http.MethodGet, "/api/v1/orders?job_id="+job, nil).list("orders")
}

func (in *installation) approve(key, job string) call {
	return call{method: http.MethodPost, path: "/api/v1/jobs/" + job + "/approve", key: key, body: object{"comment": "fine"}}
}

// bringCSR submits a CSR for the name that is called as the certificate.
func (in *installation) bringCSR(t *testing.T, id string) answer {
	t.Helper()
	return in.send(t, post("/api/v1/certificates/"+id+"/csr", object{"csr_pem": csrPEM(csrDER(t, newKey(t), id+".example.com"))}))
}

// ownRequest is the refusal of an approval by who asked.
func ownRequest(job string) refusal {
	return refusal{status: 403, code: 7, reason: "OWN_REQUEST", says: "cannot approve", meta: map[string]string{"job_id": job}}
}

// approvalTakesTwo: alice asks, bob approves.
func (in *installation) approvalTakesTwo(t *testing.T) {
	alice := in.as(aliceKey)
	alice.wants(t, object{"id": "guarded", "dns_names": []string{"guarded.example.com"}, "profile_id": "guarded"})
	job := in.job(t, "guarded", "AWAITING_APPROVAL")
	id := job.str("id")
	require.Equal(t, "alice", job.str("requested_by"))
	require.NotEmpty(t, job.str("deadline_time"))
	in.send(t, in.approve(aliceKey, id)).refused(t, ownRequest(id))
	in.send(t, in.approve(viewerKey, id)).refused(t, roleTooSmall())

	// The CSR may come before the approval: nothing is asked of the CA.
	a := alice.bringCSR(t, "guarded")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, "AWAITING_APPROVAL", a.object(t).str("status"))
	require.Empty(t, in.ordersOf(t, id))
	explained := in.get(t, "/api/v1/certificates/guarded/explain").object(t)
	blocker, _ := explained["blocker"].(map[string]any)
	require.Equal(t, "APPROVAL_REQUIRED", blocker["reason"])
	require.Equal(t, "an approver other than alice", blocker["owner"])

	for range 2 { // safe to repeat
		approved := in.send(t, in.approve(bobKey, id))
		require.Equal(t, http.StatusOK, approved.status, approved.body)
		require.Equal(t, "bob", approved.object(t).str("approved_by"))
	}
	require.Equal(t, "ACTIVE", in.version(t, "guarded", 1).str("status"))
	require.Len(t, in.ordersOf(t, id), 1)
	in.send(t, in.approve(rootKey, id)).refused(t, refusal{status: 409, code: 10, reason: "JOB_WRONG_STATE", says: "COMPLETED", meta: map[string]string{"state": "COMPLETED"}})
	in.wait(t, "both on the record", func() bool {
		events := in.must(t, http.MethodGet, "/api/v1/audit?resource_type=job&action=job.approved&resource_id="+id, nil).list("events")
		if len(events) != 1 {
			return false
		}
		actor, _ := events[0]["actor"].(map[string]any)
		return actor["id"] == "bob"
	})
}

func (in *installation) renewalWaits(t *testing.T) {
	alice, bob := in.as(aliceKey), in.as(bobKey)
	job := bob.must(t, http.MethodPost, "/api/v1/certificates/guarded/renew", object{"force": true}).str("id")
	in.job(t, "guarded", "AWAITING_APPROVAL")
	in.send(t, in.approve(bobKey, job)).refused(t, ownRequest(job))
	require.Equal(t, http.StatusOK, in.send(t, in.approve(aliceKey, job)).status)
	in.job(t, "guarded", "AWAITING_CSR")
	alice.bringCSR(t, "guarded").refused(t, refusal{status: 403, code: 7, reason: "OWN_APPROVAL", meta: map[string]string{"job_id": job}})
	require.Equal(t, http.StatusOK, bob.bringCSR(t, "guarded").status)
	in.version(t, "guarded", 2)

	// Who brings the CSR has asked for it too.
	job = bob.must(t, http.MethodPost, "/api/v1/certificates/guarded/renew", object{"force": true}).str("id")
	in.job(t, "guarded", "AWAITING_APPROVAL")
	require.Equal(t, http.StatusOK, alice.bringCSR(t, "guarded").status)
	in.send(t, in.approve(aliceKey, job)).refused(t, ownRequest(job))
	in.send(t, in.approve(bobKey, job)).refused(t, ownRequest(job))
	require.Equal(t, http.StatusOK, in.send(t, in.approve(rootKey, job)).status)
	in.version(t, "guarded", 3)
}

// soon is a certificate whose place in the spread of renewals is at the beginning.
const soon = "scheduled-21147"

// fallsDueSoon issues a certificate that is renewed some seconds later: at a tenth of its life, whose first minute lies
// before the issue.
func (in *installation) fallsDueSoon(t *testing.T) {
	t.Helper()
	in.must(t, http.MethodPost, "/api/v1/profiles", object{"id": "short", "name": "short", "max_validity": "600s", "requires_approval": true})
	in.must(t, http.MethodPost, "/api/v1/policies", object{"id": "early", "name": "early", "renew_at_fraction": 0.01})
	in.as(aliceKey).wants(t, object{"id": soon, "dns_names": []string{soon + ".example.com"}, "profile_id": "short", "policy_id": "early"})
	job := in.job(t, soon, "AWAITING_APPROVAL").str("id")
	require.Equal(t, http.StatusOK, in.send(t, in.approve(bobKey, job)).status)
	require.Equal(t, http.StatusOK, in.as(aliceKey).bringCSR(t, soon).status)
	in.version(t, soon, 1)
}

func (in *installation) scheduledRenewalWaits(t *testing.T) {
	job := in.job(t, soon, "AWAITING_APPROVAL")
	id := job.str("id")
	require.Equal(t, "RENEW", job.str("type"))
	require.Equal(t, "system:renewal-check", job.str("requested_by"))
	require.Empty(t, in.ordersOf(t, id))
	require.Equal(t, http.StatusOK, in.as(bobKey).bringCSR(t, soon).status)
	in.send(t, in.approve(bobKey, id)).refused(t, ownRequest(id))
	require.Equal(t, http.StatusOK, in.send(t, in.approve(aliceKey, id)).status)
	in.version(t, soon, 2)
	require.Len(t, in.ordersOf(t, id), 1)
}

func (in *installation) rejectedNeverRuns(t *testing.T) {
	alice := in.as(aliceKey)
	job := alice.must(t, http.MethodPost, "/api/v1/certificates/guarded/renew", object{"force": true}).str("id")
	require.Equal(t, http.StatusOK, alice.bringCSR(t, "guarded").status)
	require.Equal(t, job, in.job(t, "guarded", "AWAITING_APPROVAL").str("id"))
	reject := call{method: http.MethodPost, path: "/api/v1/jobs/" + job + "/reject", key: bobKey, body: object{"comment": "not today"}}
	for range 2 { // safe to repeat
		a := in.send(t, reject)
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, "CANCELLED", a.object(t).str("status"))
		problem, _ := a.object(t)["error"].(map[string]any)
		require.Equal(t, "REJECTED", problem["reason"])
		require.Contains(t, problem["message"], "bob: not today")
	}
	in.send(t, in.approve(rootKey, job)).refused(t, refusal{status: 409, code: 10, reason: "JOB_WRONG_STATE", says: "CANCELLED", meta: map[string]string{"state": "CANCELLED"}})

	// A job that came after it has run to its end: the scheduler has passed the rejected one.
	in.issues(t, object{"id": "later", "dns_names": []string{"later.example.com"}})
	require.Equal(t, "CANCELLED", in.get(t, "/api/v1/jobs/"+job).object(t).str("status"))
	require.Empty(t, in.ordersOf(t, job))
	require.EqualValues(t, 3, in.get(t, "/api/v1/certificates/guarded").object(t)["current_version"])

	// A retry is asked for anew, and waits again: neither who asked first nor who asks now may approve.
	retry := in.send(t, call{method: http.MethodPost, path: "/api/v1/jobs/" + job + "/retry", key: bobKey, body: object{}})
	require.Equal(t, http.StatusOK, retry.status, retry.body)
	id := retry.object(t).str("id")
	require.NotEqual(t, job, id)
	in.job(t, "guarded", "AWAITING_APPROVAL")
	in.send(t, in.approve(aliceKey, id)).refused(t, ownRequest(id))
	in.send(t, in.approve(bobKey, id)).refused(t, ownRequest(id))
	in.must(t, http.MethodPost, "/api/v1/jobs/"+id+"/cancel", object{})
	require.Equal(t, "CANCELLED", in.get(t, "/api/v1/jobs/"+id).object(t).str("status"))
}

func (in *installation) agentWaits(t *testing.T) {
	dir := testpg.Dir(t)
	chain, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	target := in.must(t, http.MethodPost, "/api/v1/targets", object{
		"id": "files", "name": "files", "type": "file", "agent_id": in.onlineAgent(t), "config": object{"fullchain_path": chain, "key_path": key},
	})
	in.as(aliceKey).wants(t, object{"id": "deployed", "dns_names": []string{"deployed.example.com"}, "profile_id": "guarded", "target_ids": []string{target.str("id")}})
	job := in.job(t, "deployed", "AWAITING_APPROVAL").str("id")
	require.NoFileExists(t, key)
	require.Equal(t, http.StatusOK, in.send(t, in.approve(bobKey, job)).status)
	in.version(t, "deployed", 1)
	in.wait(t, "the files to be there", func() bool {
		deployments := in.must(t, http.MethodGet, "/api/v1/deployments?certificate_id=deployed", nil).list("deployments")
		return len(deployments) == 1 && deployments[0].str("status") == "SERVED"
	})
	served, err := os.ReadFile(chain)
	require.NoError(t, err)
	require.Equal(t, in.get(t, "/api/v1/certificates/deployed/versions/1?format=pem").body, string(served))
	a := in.send(t, call{method: http.MethodDelete, path: "/api/v1/targets/files"})
	a.refused(t, refusal{status: 409, code: 10, reason: "TARGET_IN_USE"})
}

// explanation is what /explain says of a certificate.
type explanation struct {
	status, summary, next, blocker, owner string
}

func (in *installation) explains(t *testing.T) {
	in.issues(t, object{"id": "active", "dns_names": []string{"active.example.com"}})
	in.issues(t, object{"id": "manual", "dns_names": []string{"manual.example.com"}, "policy_id": "by-hand"})
	in.issues(t, object{"id": "revoked", "dns_names": []string{"revoked.example.com"}})
	in.must(t, http.MethodPost, "/api/v1/certificates/revoked/revoke", object{"reason": "KEY_COMPROMISE"})
	in.wants(t, object{"id": "archived", "dns_names": []string{"archived.example.com"}})
	in.must(t, http.MethodDelete, "/api/v1/certificates/archived", nil)
	in.as(aliceKey).wants(t, object{"id": "waiting", "dns_names": []string{"waiting.example.com"}, "profile_id": "guarded"})
	in.job(t, "waiting", "AWAITING_APPROVAL")
	in.as(aliceKey).wants(t, object{"id": "rejected", "dns_names": []string{"rejected.example.com"}, "profile_id": "guarded"})
	job := in.job(t, "rejected", "AWAITING_APPROVAL").str("id")
	in.must(t, http.MethodPost, "/api/v1/jobs/"+job+"/reject", object{})
	in.job(t, "mine", "AWAITING_CSR")
	for id, want := range map[string]explanation{
		"mine":     {"PENDING", "waits for a CSR", "expires unless the CSR comes", "CSR_REQUIRED", "keeps the key"},
		"waiting":  {"PENDING", "waits for approval", "expires unless it is approved", "APPROVAL_REQUIRED", "other than alice"},
		"rejected": {"PENDING", "Nothing was issued yet", "", "REJECTED", "other than alice"},
		"active":   {"ACTIVE", "due for renewal at", "a renewal job opens", "", ""},
		"manual":   {"ACTIVE", "only by request", "nothing happens by itself", "", ""},
		"deployed": {"ACTIVE", "due for renewal at", "a renewal job opens", "", ""},
		"revoked":  {"REVOKED", "KEY_COMPROMISE", "nothing", "", ""},
		"archived": {"ARCHIVED", "archived", "nothing", "", ""},
	} {
		t.Run(id, func(t *testing.T) { in.explainedAs(t, id, want) })
	}
}

func (in *installation) explainedAs(t *testing.T, id string, want explanation) {
	o := in.as(viewerKey).get(t, "/api/v1/certificates/"+id+"/explain").object(t)
	require.Equal(t, id, o.str("certificate_id"))
	require.Equal(t, want.status, o.str("status"))
	require.Contains(t, o.str("summary"), want.summary)
	next, _ := o["next"].(map[string]any)
	require.Contains(t, next["action"], want.next)
	if want.blocker == "" {
		require.Nil(t, o["blocker"])
	} else {
		blocker, _ := o["blocker"].(map[string]any)
		require.Equal(t, want.blocker, blocker["reason"])
		require.Contains(t, blocker["owner"], want.owner)
		require.NotEmpty(t, blocker["message"])
	}
	if want.status == "ACTIVE" || want.status == "PENDING" {
		for _, d := range o.list("decisions") {
			require.NotEmpty(t, d.str("rule"))
		}
		require.NotEmpty(t, o.list("decisions"))
	}
	if id == "active" {
		require.Equal(t, o.str("renew_time"), next["time"])
	}
}

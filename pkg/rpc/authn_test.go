package rpc_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testrpc"
)

func encoded(t *testing.T, c rpcctx.Caller) string {
	t.Helper()
	b, err := json.Marshal(c)
	require.NoError(t, err)
	return base64.RawURLEncoding.EncodeToString(b)
}

func bearer(service string) string {
	return "Bearer " + rpc.PeerToken(testrpc.Secret(), service).Reveal()
}

func TestAPeerTokenIsBoundToItsServiceAndSecret(t *testing.T) {
	t.Parallel()
	auth, err := rpc.NewPeerAuthenticator(testrpc.Secret())
	require.NoError(t, err)
	authenticate := func(values ...string) (rpcctx.Caller, error) {
		return auth.Authenticate(t.Context(), ping, metadata.MD{"authorization": values})
	}
	good := bearer("audit")
	require.True(t, strings.HasPrefix(good, "Bearer certctl-peer.audit."))

	c, err := authenticate(good)
	require.NoError(t, err)
	require.Equal(t, rpcctx.ServiceCaller("audit"), c)

	other := "Bearer " + rpc.PeerToken(secretbox.NewSecret("another-internal-secret"), "audit").Reveal()
	for name, values := range map[string][]string{
		"none":           nil,
		"empty":          {""},
		"no scheme":      {strings.TrimPrefix(good, "Bearer ")},
		"other scheme":   {strings.Replace(good, "Bearer", "Digest", 1)},
		"scheme only":    {"Bearer "},
		"other secret":   {other},
		"other service":  {strings.Replace(good, "audit", "gateway", 1)},
		"cut short":      {good[:len(good)-2]},
		"mac missing":    {"Bearer certctl-peer.audit."},
		"no service":     {"Bearer certctl-peer.abcd"},
		"not hex":        {"Bearer certctl-peer.audit.zz"},
		"twice":          {good, good},
		"an API key":     {"Bearer some-key"},
		"prefix missing": {strings.Replace(good, "certctl-peer.", "", 1)},
	} {
		_, err := authenticate(values...)
		require.Equal(t, errs.Unauthenticated, errs.KindOf(err), name)
	}
}

func TestAShortInternalSecretIsRefused(t *testing.T) {
	t.Parallel()
	_, err := rpc.NewPeerAuthenticator(secretbox.NewSecret("short"))
	require.ErrorContains(t, err, "at least 16")
	_, err = rpc.Dial(rpc.ClientConfig{Service: "audit", Dialer: rpc.NewMemoryNetwork().Dialer("x")})
	require.ErrorContains(t, err, "at least 16")
}

func TestPeersKnowEachOtherWhileTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	const before, after = "the-secret-of-before", "the-secret-of-after"
	knows := func(server, client string) bool {
		auth, err := rpc.NewPeerAuthenticator(secretbox.NewSecret(server))
		require.NoError(t, err)
		token := rpc.PeerToken(secretbox.NewSecret(client), "audit")
		_, err = auth.Authenticate(t.Context(), ping, metadata.MD{"authorization": {"Bearer " + token.Reveal()}})
		return err == nil
	}
	stages := []string{before, before + "," + after, after + "," + before, after}
	for i := range stages[1:] {
		require.True(t, knows(stages[i], stages[i+1]), "a server of stage %d, a client of the next", i)
		require.True(t, knows(stages[i+1], stages[i]), "a client of stage %d, a server of the next", i)
	}
	require.False(t, knows(after, before))
	require.False(t, knows(before, stages[2]), "a stage that is left out is noticed")
	_, err := rpc.NewPeerAuthenticator(secretbox.NewSecret(before + ",short"))
	require.ErrorContains(t, err, "item 2 of 2 has 5 bytes")
}

func TestTheGatewayForwardsCallersAndNobodyElseDoes(t *testing.T) {
	t.Parallel()
	auth, err := rpc.NewPeerAuthenticator(testrpc.Secret())
	require.NoError(t, err)
	alice := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleViewer}
	forward := func(service string, values ...string) (rpcctx.Caller, error) {
		return auth.Authenticate(t.Context(), ping, metadata.MD{"authorization": {bearer(service)}, "certctl-caller": values})
	}

	c, err := forward("gateway", encoded(t, alice))
	require.NoError(t, err)
	require.Equal(t, alice, c)

	c, err = forward("gateway", encoded(t, rpcctx.ServiceCaller("gateway")))
	require.NoError(t, err)
	require.Equal(t, rpcctx.ServiceCaller("gateway"), c, "the gateway speaks for itself when it says so")

	c, err = forward("audit", encoded(t, alice))
	require.NoError(t, err)
	require.Equal(t, rpcctx.ServiceCaller("audit"), c)

	for _, values := range [][]string{nil, {encoded(t, rpcctx.AnonymousCaller())}, {encoded(t, rpcctx.Caller{})}} {
		c, err = forward("gateway", values...)
		require.NoError(t, err)
		require.Equal(t, rpcctx.AnonymousCaller(), c)
	}

	for name, values := range map[string][]string{
		"garbage":         {"%%%"},
		"no JSON":         {base64.RawURLEncoding.EncodeToString([]byte("{"))},
		"two":             {encoded(t, alice), encoded(t, alice)},
		"empty":           {""},
		"too long":        {encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: strings.Repeat("a", 1024), Role: rpcctx.RoleViewer})},
		"no id":           {encoded(t, rpcctx.Caller{Type: rpcctx.User, Role: rpcctx.RoleAdmin})},
		"no role":         {encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: "alice"})},
		"unknown role":    {encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: "root"})},
		"unknown type":    {encoded(t, rpcctx.Caller{Type: "god", ID: "alice", Role: rpcctx.RoleAdmin})},
		"a user as peer":  {encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RolePeer})},
		"a user as agent": {encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleAgent})},
		"an agent admin":  {encoded(t, rpcctx.Caller{Type: rpcctx.Agent, ID: "agent-1", Role: rpcctx.RoleAdmin})},
		"another service": {encoded(t, rpcctx.ServiceCaller("audit"))},
	} {
		_, err := forward("gateway", values...)
		require.Equal(t, errs.Unauthenticated, errs.KindOf(err), name)
	}
}

func TestTheHandlerSeesTheCallerThatTheGatewayForwards(t *testing.T) {
	t.Parallel()
	var seen context.Context
	s := serve(t, callerSeen(&seen), nil)
	alice := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleViewer}
	require.NoError(t, doPing(t.Context(), s.As(t, alice)))
	require.Equal(t, alice, rpcctx.CallerFrom(seen))
	require.Equal(t, alice, rpcctx.Actor(seen))
}

func TestAPeerNamesTheActorAndKeepsItsOwnRole(t *testing.T) {
	t.Parallel()
	var seen context.Context
	s := serve(t, callerSeen(&seen), nil)
	conn := s.AsPeer(t, "renewalscheduler")
	alice := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleAdmin}

	require.NoError(t, doPing(rpcctx.WithCaller(t.Context(), alice), conn))
	require.Equal(t, rpcctx.ServiceCaller("renewalscheduler"), rpcctx.CallerFrom(seen))
	require.Equal(t, alice, rpcctx.Actor(seen))

	require.NoError(t, doPing(t.Context(), conn))
	require.Equal(t, rpcctx.ServiceCaller("renewalscheduler"), rpcctx.Actor(seen))
}

func TestAnActorGivesNoRights(t *testing.T) {
	t.Parallel()
	f := pings(nil)
	s := testrpc.Serve(t, testrpc.Config{Table: adminsOnly(), Register: registerFakes(f)})
	admin := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleAdmin}
	err := doPing(rpcctx.WithCaller(t.Context(), admin), s.AsPeer(t, "audit"))
	require.Equal(t, "ROLE_NOT_ALLOWED", errs.ReasonOf(err))
}

func adminsOnly() rpc.AuthzTable {
	all := table()
	for m := range all {
		all[m] = rpc.Allow(rpcctx.RoleAdmin)
	}
	return all
}

func TestWhatArrivedFromOutsideIsNotPassedOn(t *testing.T) {
	t.Parallel()
	var seen context.Context
	s := serve(t, callerSeen(&seen), nil)
	forged := encoded(t, rpcctx.Caller{Type: rpcctx.User, ID: "mallory", Role: rpcctx.RoleAdmin})
	viewer := rpcctx.Caller{Type: rpcctx.User, ID: "mallory", Role: rpcctx.RoleViewer}
	ctx := metadata.AppendToOutgoingContext(t.Context(),
		"authorization", "Bearer users-key", "certctl-caller", forged, "certctl-actor", forged, "x-request-id", "forged")

	require.NoError(t, doPing(rpcctx.WithRequestID(ctx, "req-1"), s.As(t, viewer)))
	require.Equal(t, viewer, rpcctx.CallerFrom(seen))
	require.Equal(t, "req-1", rpcctx.RequestID(seen))

	require.Equal(t, errs.Unauthenticated, errs.KindOf(doPing(ctx, s.AsRole(t, rpcctx.RoleNone))))

	require.NoError(t, doPing(ctx, s.AsPeer(t, "audit")))
	require.Equal(t, rpcctx.ServiceCaller("audit"), rpcctx.Actor(seen))
}

func TestAStrangerReachesPublicMethodsOnly(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	for name, conn := range map[string]testpb.TestServiceClient{
		"no credential":      testpb.NewTestServiceClient(s.AsStranger(t)),
		"gateway, no caller": testpb.NewTestServiceClient(s.AsRole(t, rpcctx.RoleNone)),
		"wrong secret": testpb.NewTestServiceClient(memoryConn(t, s, rpc.ClientConfig{
			Service: "audit", InternalSecret: secretbox.NewSecret("another-internal-secret"),
		})),
	} {
		_, err := conn.Ping(t.Context(), &testpb.PingRequest{})
		require.Equal(t, errs.Unauthenticated, errs.KindOf(err), name)
		_, err = conn.PingEmpty(t.Context(), &testpb.PingEmptyRequest{})
		require.Equal(t, errs.Unimplemented, errs.KindOf(err), "%s: the public method is reached", name)
	}
}

func TestARuleForRoleNoneNeedsTheGateway(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	_, err := testpb.NewTestServiceClient(s.AsStranger(t)).PingError(t.Context(), &testpb.PingErrorRequest{})
	require.Equal(t, errs.Unauthenticated, errs.KindOf(err))
	_, err = testpb.NewTestServiceClient(s.AsRole(t, rpcctx.RoleNone)).PingError(t.Context(), &testpb.PingErrorRequest{})
	require.Equal(t, errs.Unimplemented, errs.KindOf(err), "the method is reached")
}

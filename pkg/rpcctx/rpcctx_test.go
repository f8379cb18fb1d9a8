package rpcctx_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/rpcctx"
)

func TestAContextWithoutFactsIsAnonymousAndSilent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	require.True(t, rpcctx.CallerFrom(ctx).IsAnonymous())
	require.Equal(t, rpcctx.RoleNone, rpcctx.CallerFrom(ctx).Role)
	require.True(t, rpcctx.Caller{}.IsAnonymous())
	require.Empty(t, rpcctx.RequestID(ctx))
	require.NotPanics(t, func() { rpcctx.Logger(ctx).Info("dropped") })
	_, ok := rpcctx.OnBehalfOf(ctx)
	require.False(t, ok)
}

func TestFactsAreFoundAgain(t *testing.T) {
	t.Parallel()
	alice := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleOperator}
	log := zap.NewExample()
	ctx := rpcctx.WithLogger(rpcctx.WithRequestID(rpcctx.WithCaller(t.Context(), alice), "req-1"), log)
	require.Equal(t, alice, rpcctx.CallerFrom(ctx))
	require.Equal(t, "req-1", rpcctx.RequestID(ctx))
	require.Same(t, log, rpcctx.Logger(ctx))
	require.Equal(t, "user:alice", alice.String())
}

func TestTheActorIsTheOneOnWhoseBehalfAPeerCalls(t *testing.T) {
	t.Parallel()
	peer := rpcctx.ServiceCaller("renewalscheduler")
	alice := rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleAdmin}
	ctx := rpcctx.WithCaller(t.Context(), peer)
	require.Equal(t, peer, rpcctx.Actor(ctx))
	ctx = rpcctx.WithOnBehalfOf(ctx, alice)
	require.Equal(t, alice, rpcctx.Actor(ctx))
	require.Equal(t, peer, rpcctx.CallerFrom(ctx), "acting for somebody does not lend the role")
}

func TestOnlySaneRequestIDsAreKept(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "0197-ab_C.d:e", strings.Repeat("x", 128)} {
		require.True(t, rpcctx.ValidRequestID(id), id)
	}
	for _, id := range []string{"", "a b", "a\nb", "é", "a\"b", strings.Repeat("x", 129)} {
		require.False(t, rpcctx.ValidRequestID(id), id)
	}
}

func TestRoleNoneIsNotARole(t *testing.T) {
	t.Parallel()
	require.False(t, rpcctx.RoleNone.Valid())
	require.False(t, rpcctx.Role("root").Valid())
	for _, r := range rpcctx.Roles() {
		require.True(t, r.Valid())
	}
}

package auditlog_test

import (
	"context"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testpg"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

var alice = rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleOperator}

func record(ctx context.Context, t *testing.T, e auditlog.Entry) *auditv1.Record {
	t.Helper()
	r, ok := auditlog.Event(ctx, e).Payload.(*auditv1.Record)
	require.True(t, ok)
	return r
}

func TestAnEventIsWrittenInTheTransactionOfTheChange(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{
		"migrations/00001_init.sql": {Data: []byte("-- +goose Up\n" + outbox.Schema)},
	}})
	ctx := rpcctx.WithRequestID(rpcctx.WithCaller(t.Context(), alice), "req-1")
	require.NoError(t, db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return outbox.Add(ctx, tx, auditlog.Event(ctx, auditlog.Entry{
			Action: "certificate.created", ResourceType: "certificate", ResourceID: "cert-1",
			Data: map[string]any{"name": "web", "dns_names": []any{"a.example", "b.example"}, "days": 90},
		}))
	}))

	var destination, kind, requestID string
	var payload []byte
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT destination, type, request_id, payload FROM outbox`).
		Scan(&destination, &kind, &requestID, &payload))
	require.Equal(t, auditlog.Destination, destination)
	require.Equal(t, auditlog.EventType, kind)
	require.Equal(t, "req-1", requestID)

	var event eventv1.Event
	require.NoError(t, proto.Unmarshal(payload, &event))
	require.Equal(t, "certificate", event.GetResourceType())
	require.Equal(t, "cert-1", event.GetResourceId())
	var got auditv1.Record
	require.NoError(t, event.GetPayload().UnmarshalTo(&got))
	require.Equal(t, "certificate.created", got.GetAction())
	require.Equal(t, typev1.Actor_USER, got.GetActor().GetType())
	require.Equal(t, "alice", got.GetActor().GetId())
	require.Equal(t, "cert-1", got.GetResource().GetId())
	require.Equal(t, auditlog.Success, got.GetOutcome(), "what is not said succeeded")
	require.Equal(t, map[string]any{"name": "web", "dns_names": []any{"a.example", "b.example"}, "days": 90.0}, got.GetData().AsMap())
}

func TestTheActorIsTheOneForWhomAPeerActs(t *testing.T) {
	t.Parallel()
	ctx := rpcctx.WithCaller(t.Context(), rpcctx.ServiceCaller("renewalscheduler"))
	require.Equal(t, "renewalscheduler", record(ctx, t, auditlog.Entry{Action: "a"}).GetActor().GetId())
	ctx = rpcctx.WithOnBehalfOf(ctx, alice)
	require.Equal(t, "alice", record(ctx, t, auditlog.Entry{Action: "a"}).GetActor().GetId())
	named := &typev1.Actor{Type: typev1.Actor_AGENT, Id: "agt-1"}
	got := record(ctx, t, auditlog.Entry{Action: "a", Actor: named, Outcome: auditlog.Denied})
	require.Equal(t, "agt-1", got.GetActor().GetId(), "an actor that is named goes first")
	require.Equal(t, auditlog.Denied, got.GetOutcome())
}

func TestEveryTypeOfCallerHasItsActor(t *testing.T) {
	t.Parallel()
	for caller, want := range map[rpcctx.CallerType]typev1.Actor_Type{
		rpcctx.User: typev1.Actor_USER, rpcctx.Agent: typev1.Actor_AGENT, rpcctx.Service: typev1.Actor_SERVICE,
		rpcctx.Anonymous: typev1.Actor_ANONYMOUS, "": typev1.Actor_ANONYMOUS,
	} {
		got := auditlog.Actor(rpcctx.Caller{Type: caller, ID: "x"})
		require.Equal(t, want, got.GetType(), caller)
		require.Equal(t, "x", got.GetId())
	}
}

func TestDataThatJSONDoesNotHaveIsAMistakeInTheProgram(t *testing.T) {
	t.Parallel()
	require.Panics(t, func() {
		auditlog.Event(t.Context(), auditlog.Entry{Action: "certificate.created", Data: map[string]any{"names": []string{"a"}}})
	})
}

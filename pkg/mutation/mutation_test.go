package mutation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testpg"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

const service = "mutating"

func schema() pg.Schema {
	return pg.Schema{Name: service, FS: fstest.MapFS{"migrations/00001_init.sql": {Data: []byte(
		"-- +goose Up\n" + mutation.Schema + "\nCREATE TABLE made (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);\n")}}}
}

// bench makes targets: each one is a row, and its id the answer.
type bench struct {
	data *testpg.Database
	db   *pg.DB
	// prepared and applied count how often the functions of the change ran.
	prepared, applied atomic.Int64
	// fail, if set, is what the change answers after it has written its row.
	fail error
	// inside, if set, runs within the transaction, before the row is written.
	inside func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	d := testpg.NewDatabase(t, schema())
	return &bench{data: d, db: d.Open(t, service)}
}

type (
	request  = inventoryv1.CreateTargetRequest
	response = inventoryv1.CreateTargetResponse
)

func create(requestID, name string) *request {
	return &request{RequestId: requestID, Target: &inventoryv1.Target{Name: name}}
}

func (b *bench) do(ctx context.Context, r *request) (*response, error) {
	return mutation.Do(ctx, b.db, mutation.Change[*response]{
		Request: r,
		Prepare: func(context.Context) error {
			b.prepared.Add(1)
			return nil
		},
		Apply: func(ctx context.Context, tx pgx.Tx) (*response, error) {
			b.applied.Add(1)
			if b.inside != nil {
				b.inside()
			}
			var id int64
			err := tx.QueryRow(ctx, `INSERT INTO made (name) VALUES ($1) RETURNING id`, r.GetTarget().GetName()).Scan(&id)
			if err != nil {
				return nil, err
			}
			return &response{Target: &inventoryv1.Target{Id: fmt.Sprint(id), Name: r.GetTarget().GetName()}}, b.fail
		},
		Empty: func() *response { return &response{} },
	})
}

func (b *bench) rows(t *testing.T, table string) int {
	t.Helper()
	var n int
	require.NoError(t, b.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n))
	return n
}

// age makes every key older.
func (b *bench) age(t *testing.T, by time.Duration) {
	t.Helper()
	tag, err := b.db.Pool.Exec(t.Context(), `UPDATE idempotency_keys SET create_time = create_time - $1::interval`, by)
	require.NoError(t, err)
	require.Positive(t, tag.RowsAffected())
}

func as(ctx context.Context, name string) context.Context {
	return rpcctx.WithCaller(ctx, rpcctx.Caller{Type: rpcctx.User, ID: name, Role: rpcctx.RoleOperator})
}

func header(ctx context.Context, key, value string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(key, value))
}

func TestARepeatGetsTheFirstAnswerAndChangesNothing(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]struct {
		field string
		ctx   func(context.Context) context.Context
	}{
		"key in the message":     {"key-1", func(ctx context.Context) context.Context { return ctx }},
		"key in the metadata":    {"", func(ctx context.Context) context.Context { return header(ctx, mutation.KeyMetadata, "key-1") }},
		"the message goes first": {"key-1", func(ctx context.Context) context.Context { return header(ctx, mutation.KeyMetadata, "other") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ctx := by.ctx(as(t.Context(), "alice"))
			first, err := b.do(ctx, create(by.field, "web"))
			require.NoError(t, err)
			for range 3 {
				again, err := b.do(ctx, create(by.field, "web"))
				require.NoError(t, err)
				require.Equal(t, first.GetTarget().GetId(), again.GetTarget().GetId())
				require.Equal(t, "web", again.GetTarget().GetName())
			}
			require.Equal(t, 1, b.rows(t, "made"))
			require.EqualValues(t, 1, b.applied.Load())
			require.EqualValues(t, 1, b.prepared.Load(), "a repeat asks nobody")
		})
	}
}

func TestTheKeyIsTheSameInTheMessageAndInTheMetadata(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := as(t.Context(), "alice")
	first, err := b.do(ctx, create("key-1", "web"))
	require.NoError(t, err)
	again, err := b.do(header(ctx, mutation.KeyMetadata, "key-1"), create("", "web"))
	require.NoError(t, err)
	require.Equal(t, first.GetTarget().GetId(), again.GetTarget().GetId())
}

func TestAnotherRequestWithTheKeyIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := as(t.Context(), "alice")
	_, err := b.do(ctx, create("key-1", "web"))
	require.NoError(t, err)
	_, err = b.do(ctx, create("key-1", "mail"))
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", errs.ReasonOf(err))
	require.Equal(t, 409, errs.KindOf(err).HTTPStatus())

	_, err = mutation.Do(ctx, b.db, mutation.Change[*response]{
		Request: &inventoryv1.DeleteTargetRequest{RequestId: "key-1"},
		Apply:   func(context.Context, pgx.Tx) (*response, error) { return &response{}, errors.New("applied") },
		Empty:   func() *response { return &response{} },
	})
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", errs.ReasonOf(err), "a key is bound to the kind of the request too")
	require.Equal(t, 1, b.rows(t, "made"))
}

func TestAKeyBelongsToItsCaller(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, err := b.do(as(t.Context(), "alice"), create("key-1", "web"))
	require.NoError(t, err)
	second, err := b.do(as(t.Context(), "bob"), create("key-1", "mail"))
	require.NoError(t, err)
	require.NotEqual(t, first.GetTarget().GetId(), second.GetTarget().GetId())
}

func TestWithoutAKeyEachCallIsAChange(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for range 2 {
		_, err := b.do(as(t.Context(), "alice"), create("", "web"))
		require.NoError(t, err)
	}
	require.Equal(t, 2, b.rows(t, "made"))
	require.Zero(t, b.rows(t, "idempotency_keys"))
}

func TestConcurrentRepeatsChangeOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const callers = 6
	// The first one holds the key until another waits for it, so that the two really meet.
	admin := b.data.Admin(t)
	b.inside = func() {
		require.Eventually(t, func() bool {
			var waiting int
			err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO idempotency_keys%'`).Scan(&waiting)
			return err == nil && waiting == callers-1
		}, 10*time.Second, 5*time.Millisecond, "the other callers do not wait for the key")
	}
	var ids [callers]string
	var g errgroup.Group
	for i := range callers {
		g.Go(func() error {
			answer, err := b.do(as(t.Context(), "alice"), create("key-1", "web"))
			ids[i] = answer.GetTarget().GetId()
			return err
		})
	}
	require.NoError(t, g.Wait())
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	require.NotEmpty(t, ids[0])
	require.Equal(t, 1, b.rows(t, "made"))
	require.EqualValues(t, 1, b.applied.Load())
}

func TestAFailureIsNotRemembered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := as(t.Context(), "alice")
	b.fail = errs.New(errs.Unavailable, "CA_AWAY", "the CA does not answer")
	_, err := b.do(ctx, create("key-1", "web"))
	require.Equal(t, "CA_AWAY", errs.ReasonOf(err))
	require.Zero(t, b.rows(t, "made"))
	require.Zero(t, b.rows(t, "idempotency_keys"))

	b.fail = nil
	answer, err := b.do(ctx, create("key-1", "web"))
	require.NoError(t, err)
	require.NotEmpty(t, answer.GetTarget().GetId())
	require.Equal(t, 1, b.rows(t, "made"))
}

func TestAFailedPreparationStartsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	refused := errors.New("refused")
	for _, key := range []string{"", "key-1"} {
		_, err := mutation.Do(t.Context(), b.db, mutation.Change[*response]{
			Request: create(key, "web"),
			Prepare: func(context.Context) error { return refused },
			Apply:   func(context.Context, pgx.Tx) (*response, error) { return nil, errors.New("applied") },
			Empty:   func() *response { return &response{} },
		})
		require.ErrorIs(t, err, refused)
	}
	require.Zero(t, b.rows(t, "idempotency_keys"))
}

func TestAnEmptyAnswerIsRememberedToo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	applied := 0
	for range 2 {
		_, err := mutation.Do(t.Context(), b.db, mutation.Change[*inventoryv1.DeleteTargetResponse]{
			Request: &inventoryv1.DeleteTargetRequest{Id: "tgt-1", RequestId: "key-1"},
			Apply: func(context.Context, pgx.Tx) (*inventoryv1.DeleteTargetResponse, error) {
				applied++
				return &inventoryv1.DeleteTargetResponse{}, nil
			},
			Empty: func() *inventoryv1.DeleteTargetResponse { return &inventoryv1.DeleteTargetResponse{} },
		})
		require.NoError(t, err)
	}
	require.Equal(t, 1, applied)
}

func TestAKeyIsRememberedForItsRetention(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := as(t.Context(), "alice")
	first, err := b.do(ctx, create("key-1", "web"))
	require.NoError(t, err)

	b.age(t, mutation.Retention-time.Minute)
	pruned, err := mutation.Prune(t.Context(), b.db.Pool)
	require.NoError(t, err)
	require.Zero(t, pruned)
	again, err := b.do(ctx, create("key-1", "web"))
	require.NoError(t, err)
	require.Equal(t, first.GetTarget().GetId(), again.GetTarget().GetId())

	b.age(t, 2*time.Minute)
	other, err := b.do(ctx, create("key-1", "mail"))
	require.NoError(t, err, "an old key is free for any request, also before it is pruned")
	require.NotEqual(t, first.GetTarget().GetId(), other.GetTarget().GetId())
	repeat, err := b.do(ctx, create("key-1", "mail"))
	require.NoError(t, err)
	require.Equal(t, other.GetTarget().GetId(), repeat.GetTarget().GetId())

	b.age(t, mutation.Retention+time.Minute)
	pruned, err = mutation.Prune(t.Context(), b.db.Pool)
	require.NoError(t, err)
	require.Equal(t, 1, pruned)
	require.Zero(t, b.rows(t, "idempotency_keys"))
}

func TestAKeyHasABound(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.do(t.Context(), create(strings.Repeat("k", 128), "web"))
	require.NoError(t, err)
	for name, call := range map[string]func() (*response, error){
		"message": func() (*response, error) { return b.do(t.Context(), create(strings.Repeat("k", 129), "web")) },
		"metadata": func() (*response, error) {
			return b.do(header(t.Context(), mutation.KeyMetadata, strings.Repeat("k", 129)), create("", "web"))
		},
	} {
		_, err := call()
		require.Equal(t, errs.Invalid, errs.KindOf(err), name)
		require.Equal(t, "request_id", errs.From(err).Violations()[0].Field, name)
	}
}

func TestTheExpectedRevisionComesFromTheMessageOrFromIfMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		field  int32
		header string
		want   int32
	}{
		{0, "", 0}, {7, "", 7}, {0, "*", 0}, {0, `"3"`, 3}, {7, `"3"`, 7}, {0, `"2147483647"`, 2147483647},
	} {
		ctx := t.Context()
		if c.header != "" {
			ctx = header(ctx, mutation.IfMatchMetadata, c.header)
		}
		got, err := mutation.Revision(ctx, c.field)
		require.NoError(t, err, "%+v", c)
		require.Equal(t, c.want, got, "%+v", c)
	}
}

func TestAnIfMatchThatIsNoRevisionNeverMatches(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`"abc"`, `""`, `"0"`, `"-1"`, `"2147483648"`, `"1","2"`, `"1`, `1"`, `3`, `""3""`, `W/"3"`, `"+3"`, `"03"`, " "} {
		_, err := mutation.Revision(header(t.Context(), mutation.IfMatchMetadata, text), 0)
		require.Equal(t, "REVISION_MISMATCH", errs.ReasonOf(err), text)
		require.Equal(t, 412, errs.KindOf(err).HTTPStatus(), text)
	}
}

func TestAMismatchTellsTheCurrentRevision(t *testing.T) {
	t.Parallel()
	err := mutation.Mismatch("target tgt-1", 3, 5)
	require.Equal(t, errs.PreconditionFailed, errs.KindOf(err))
	require.Equal(t, "5", errs.MetaOf(err)["revision"])
	require.ErrorContains(t, err, "target tgt-1 has revision 5, not 3")
}

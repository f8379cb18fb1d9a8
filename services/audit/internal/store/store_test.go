package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

type bundle struct {
	database *testpg.Database
	store    *store.Store
	admin    *pgxpool.Pool
}

func setup(t testing.TB) bundle {
	t.Helper()
	d := testpg.NewDatabase(t, store.Schema())
	return bundle{database: d, store: store.New(d.Open(t, "audit"), core.NewSealer([]byte("test key")), zap.NewNop()), admin: d.Admin(t)}
}

func (b bundle) tamper(t *testing.T, sql string, args ...any) {
	t.Helper()
	tag, err := b.admin.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
	require.Positive(t, tag.RowsAffected(), "the tampering changed nothing")
}

func (b bundle) append(t testing.TB, n int) {
	t.Helper()
	added, err := b.store.Append(t.Context(), events(n))
	require.NoError(t, err)
	require.Equal(t, n, added)
}

func events(n int) []*core.Event {
	list := make([]*core.Event, 0, n)
	for i := range n {
		list = append(list, &core.Event{
			ID: "evt-" + uuid.NewString(), Time: time.Now().UTC().Truncate(time.Microsecond), ActorType: "USER", ActorID: "ci",
			Action: "certificate.created", ResourceType: "certificate", ResourceID: fmt.Sprintf("cert-%d", i), Outcome: "SUCCESS",
			RequestID: "r1", Data: []byte(`{"name":"a"}`),
		})
	}
	return list
}

func TestAnUntouchedChainIsValid(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 7)
	b.append(t, 3)
	r, err := b.store.Verify(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Nil(t, r.Fault)
	require.EqualValues(t, 10, r.Checked)
	require.EqualValues(t, 10, r.Last.Sequence)
}

func TestAnEventIsRecordedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := events(3)
	for _, want := range []int{3, 0} {
		added, err := b.store.Append(t.Context(), batch)
		require.NoError(t, err)
		require.Equal(t, want, added)
	}
	added, err := b.store.Append(t.Context(), append(batch, batch[0], events(1)[0]))
	require.NoError(t, err)
	require.Equal(t, 1, added)
}

func TestManyWritersLeaveNoGap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 10 {
				if _, err := b.store.Append(t.Context(), events(5)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	r, err := b.store.Verify(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Nil(t, r.Fault)
	require.EqualValues(t, 400, r.Checked)
}

func TestAChangeOfAnyColumnIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 6)
	changes := map[string]string{
		"id": "'evt-x'", "time": "time + interval '1 microsecond'", "record_time": "record_time + interval '1 second'", "actor_type": "'AGENT'",
		"actor_id": "'mallory'", "action": "'certificate.archived'", "resource_type": "'agent'", "resource_id": "'cert-x'", "outcome": "'FAILURE'",
		"request_id": "''", "data": `'{"name": "a"}'`, "hash": "sha256('x')", "previous_hash": "sha256('x')",
	}
	for column, value := range changes {
		tx, err := b.admin.Begin(t.Context())
		require.NoError(t, err)
		var old any
		require.NoError(t, tx.QueryRow(t.Context(), `SELECT `+column+`::text FROM audit.events WHERE sequence = 4`).Scan(&old))
		require.NoError(t, tx.Rollback(t.Context()))
		b.tamper(t, `UPDATE audit.events SET `+column+` = `+value+` WHERE sequence = 4`)
		r, err := b.store.Verify(t.Context(), 0, 0)
		require.NoError(t, err)
		require.NotNil(t, r.Fault, "a change of %s was not seen", column)
		require.EqualValues(t, 4, r.Fault.Sequence, "a change of %s", column)
		kind := columnType(t, b.admin, column)
		b.tamper(t, `UPDATE audit.events SET `+column+` = $1::text::`+kind+` WHERE sequence = 4`, old)
		r, err = b.store.Verify(t.Context(), 0, 0)
		require.NoError(t, err)
		require.Nil(t, r.Fault, "%s was put back", column)
	}
}

func columnType(t *testing.T, admin *pgxpool.Pool, column string) string {
	t.Helper()
	var kind string
	require.NoError(t, admin.QueryRow(t.Context(),
		`SELECT data_type FROM information_schema.columns WHERE table_schema = 'audit' AND table_name = 'events' AND column_name = $1`, column).Scan(&kind))
	return kind
}

func TestRemovedEventsAreNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql      string
		sequence int64
		reason   string
	}{
		"the first":         {`DELETE FROM audit.events WHERE sequence = 1`, 1, core.ReasonGap},
		"one in the middle": {`DELETE FROM audit.events WHERE sequence = 3`, 3, core.ReasonGap},
		"the end":           {`DELETE FROM audit.events WHERE sequence > 4`, 5, core.ReasonHead},
		"the end, head too": {`WITH gone AS (DELETE FROM audit.events WHERE sequence > 4) UPDATE audit.head SET sequence = 4, hash = (SELECT hash FROM audit.events WHERE sequence = 4)`, 4, core.ReasonHead},
		"the head":          {`DELETE FROM audit.head`, 1, core.ReasonHead},
		"everything":        {`DELETE FROM audit.events`, 1, core.ReasonHead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.append(t, 6)
			b.tamper(t, c.sql)
			r, err := b.store.Verify(t.Context(), 0, 0)
			require.NoError(t, err)
			require.NotNil(t, r.Fault)
			require.Equal(t, c.sequence, r.Fault.Sequence)
			require.Equal(t, c.reason, r.Fault.Reason)
		})
	}
}

func TestAChainMadeAnewDoesNotFitItsCheckpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 4)
	r, err := b.store.VerifyNew(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.store.AddCheckpoint(t.Context(), r.Last))

	// Somebody with all rights on the database, but without our key, writes another history.
	b.tamper(t, `DELETE FROM audit.events`)
	b.tamper(t, `DELETE FROM audit.head`)
	b.append(t, 4)
	r, err = b.store.Verify(t.Context(), 0, 0)
	require.NoError(t, err)
	require.NotNil(t, r.Fault)
	require.Equal(t, core.ReasonAnchor, r.Fault.Reason)
	require.EqualValues(t, 4, r.Fault.Sequence)
}

func TestACutOffEndIsSeenAlsoByAWalkWithALastEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 6)
	for _, last := range []int64{6, 100} {
		r, err := b.store.Verify(t.Context(), 0, last)
		require.NoError(t, err)
		require.Nil(t, r.Fault)
		require.EqualValues(t, 6, r.Checked)
	}
	b.tamper(t, `DELETE FROM audit.events WHERE sequence > 4`)
	for _, last := range []int64{5, 6, 100} {
		r, err := b.store.Verify(t.Context(), 2, last)
		require.NoError(t, err)
		require.NotNil(t, r.Fault, "a walk to %d", last)
		require.EqualValues(t, 5, r.Fault.Sequence)
	}
	r, err := b.store.Verify(t.Context(), 2, 4)
	require.NoError(t, err)
	require.Nil(t, r.Fault, "what was asked for is whole")
}

func TestAnOldEndThatWasPutBackIsSeen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 3)
	b.tamper(t, `CREATE TABLE audit.old_head AS SELECT * FROM audit.head`)
	b.append(t, 3)
	r, err := b.store.VerifyNew(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.store.AddCheckpoint(t.Context(), r.Last))
	b.tamper(t, `DELETE FROM audit.events WHERE sequence > 3`)
	b.tamper(t, `UPDATE audit.head AS h SET sequence = o.sequence, hash = o.hash, time = o.time, mac = o.mac FROM audit.old_head AS o`)
	for name, verify := range map[string]func() (store.Report, error){
		"all": func() (store.Report, error) { return b.store.Verify(t.Context(), 0, 0) },
		"new": func() (store.Report, error) { return b.store.VerifyNew(t.Context()) },
	} {
		r, err := verify()
		require.NoError(t, err, name)
		require.NotNil(t, r.Fault, name)
		require.EqualValues(t, 4, r.Fault.Sequence, name)
		require.Equal(t, core.ReasonHead, r.Fault.Reason, name)
	}
}

func TestAWalkBeginsWithinTheChain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, first := range []int64{0, 1} {
		r, err := b.store.Verify(t.Context(), first, 0)
		require.NoError(t, err)
		require.Nil(t, r.Fault, "an empty chain is whole")
	}
	b.append(t, 6)
	for first, checked := range map[int64]int64{1: 6, 6: 1, 7: 0} {
		r, err := b.store.Verify(t.Context(), first, 0)
		require.NoError(t, err)
		require.Nil(t, r.Fault, "a walk from %d", first)
		require.Equal(t, checked, r.Checked, "a walk from %d", first)
	}
	_, err := b.store.Verify(t.Context(), 8, 0)
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	b.tamper(t, `DELETE FROM audit.head`)
	r, err := b.store.Verify(t.Context(), 5, 0)
	require.NoError(t, err)
	require.NotNil(t, r.Fault)
}

func TestOnlyWhatIsNewIsVerifiedAfterACheckpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 4)
	r, err := b.store.VerifyNew(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.store.AddCheckpoint(t.Context(), r.Last))
	b.append(t, 2)
	r, err = b.store.VerifyNew(t.Context())
	require.NoError(t, err)
	require.Nil(t, r.Fault)
	require.LessOrEqual(t, r.Checked, int64(3))
	require.EqualValues(t, 6, r.Last.Sequence)
}

func TestWhatIsOlderIsVerifiedInPartsInTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 9)
	type part struct{ checked, next int64 }
	for _, c := range []struct {
		first, before int64
		want          part
	}{
		{0, 9, part{4, 5}}, {5, 9, part{4, 1}}, {5, 8, part{3, 1}}, {9, 9, part{4, 5}}, {12, 9, part{4, 5}}, {1, 1, part{0, 1}}, {1, 2, part{1, 1}},
	} {
		r, next, err := b.store.VerifyOld(t.Context(), c.first, c.before, 4)
		require.NoError(t, err)
		require.Nil(t, r.Fault)
		require.Equal(t, c.want, part{r.Checked, next}, "from %d before %d", c.first, c.before)
	}
	b.tamper(t, `UPDATE audit.events SET actor_id = 'x' WHERE sequence = 6`)
	r, _, err := b.store.VerifyOld(t.Context(), 5, 9, 4)
	require.NoError(t, err)
	require.NotNil(t, r.Fault)
	require.EqualValues(t, 6, r.Fault.Sequence)
}

func TestTheServiceItselfCannotRewriteTheRecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 1)
	db := b.database.Open(t, "audit")
	for _, sql := range []string{`UPDATE events SET actor_id = 'x'`, `DELETE FROM events`, `TRUNCATE events`, `DELETE FROM checkpoints`,
		`UPDATE checkpoint_seals SET mac = ''`, `DELETE FROM checkpoint_seals`} {
		_, err := db.Pool.Exec(t.Context(), sql)
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, sql)
		require.Equal(t, "42501", refused.Code, sql)
	}
}

func TestEveryFilterUsesAnIndex(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.admin.Exec(t.Context(), `INSERT INTO audit.events
SELECT n, 'evt-' || n, now() - n * interval '1 second', now(), CASE WHEN n % 50 = 0 THEN 'AGENT' ELSE 'USER' END, 'actor-' || n % 5000, 'action.' || n % 1000,
       'type-' || n % 400, 'id-' || n, CASE WHEN n % 1000 = 0 THEN 'FAILURE' ELSE 'SUCCESS' END, CASE WHEN n % 3 = 0 THEN '' ELSE 'req-' || n END, '{}', sha256('a'), sha256('b')
FROM generate_series(1, 100000) AS n`)
	require.NoError(t, err)
	_, err = b.admin.Exec(t.Context(), `ANALYZE audit.events`)
	require.NoError(t, err)
	db := b.database.Open(t, "audit")
	for name, f := range map[string]store.Filter{
		"none": {}, "actor": {ActorID: "actor-7"}, "actor type": {ActorType: "AGENT"}, "action": {Action: "action.7"}, "action prefix": {Action: "action.*"},
		"resource": {ResourceType: "type-7", ResourceID: "id-7"}, "resource type": {ResourceType: "type-7"}, "resource id": {ResourceID: "id-7"},
		"outcome": {Outcome: "FAILURE"}, "request": {RequestID: "req-7"}, "time": {After: time.Now().Add(-time.Hour), Before: time.Now().Add(-time.Hour / 2)},
	} {
		statements, args, err := store.ListStatements(f)
		require.NoError(t, err, name)
		for _, sql := range statements {
			rows, err := db.Pool.Query(t.Context(), `EXPLAIN `+sql, args...)
			require.NoError(t, err, name)
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err, name)
			plan := strings.Join(lines, "\n")
			require.NotContains(t, plan, "Seq Scan on events", "filter %s:\n%s", name, plan)
			rows, err = db.Pool.Query(t.Context(), sql, args...)
			require.NoError(t, err, name)
			n := 0
			for rows.Next() {
				n++
			}
			if n == 51 { // the page is full: there is no other statement
				break
			}
		}
	}
}

package page_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/page"
)

func sorting(t testing.TB) *page.Sorting {
	t.Helper()
	s, err := page.NewSorting(page.Column{SQL: "c.id", Kind: page.Text}, "created_at desc",
		page.Column{Field: "created_at", SQL: "c.create_time", Kind: page.Time},
		page.Column{Field: "expires_at", SQL: "c.not_after", Kind: page.Time, NullAs: "'infinity'::timestamptz"},
		page.Column{Field: "seen_at", SQL: "c.seen", Kind: page.Time, Nullable: true},
	)
	require.NoError(t, err)
	return s
}

func TestOrders(t *testing.T) {
	t.Parallel()
	s := sorting(t)
	for in, want := range map[string][2]string{
		"":                  {"created_at desc", "c.create_time DESC, c.id DESC"},
		"created_at":        {"created_at asc", "c.create_time ASC, c.id ASC"},
		" created_at  ASC ": {"created_at asc", "c.create_time ASC, c.id ASC"},
		"expires_at desc":   {"expires_at desc", "COALESCE(c.not_after, 'infinity'::timestamptz) DESC, c.id DESC"},
	} {
		o, err := s.Parse(in)
		require.NoError(t, err)
		require.Equal(t, want, [2]string{o.String(), o.SQL()}, "order_by %q", in)
	}
}

func TestAnUnknownOrderIsRefusedAndTheAllowedAreNamed(t *testing.T) {
	t.Parallel()
	s := sorting(t)
	for _, in := range []string{"name", "expires_at down", "expires_at desc, created_at", "c.id", "expires_at desc desc", "1; DROP TABLE c"} {
		_, err := s.Parse(in)
		requireField(t, err, "order_by")
		require.ErrorContains(t, err, "created_at, expires_at, seen_at")
	}
}

func TestATableThatCannotOrderIsRefused(t *testing.T) {
	t.Parallel()
	id := page.Column{SQL: "id", Kind: page.Text}
	_, err := page.NewSorting(id, "name")
	require.ErrorContains(t, err, "normal order")
	_, err = page.NewSorting(page.Column{SQL: "id"}, "")
	require.ErrorContains(t, err, "id column")
	_, err = page.NewSorting(id, "a", page.Column{Field: "a", SQL: "a"})
	require.ErrorContains(t, err, "kind")
}

func TestConditionsAfterACursor(t *testing.T) {
	t.Parallel()
	s := sorting(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	key, id := page.TimeValue(at), page.TextValue("cert-7")
	for _, tc := range []struct {
		order string
		key   page.Value
		where string
		args  []any
	}{
		{"created_at", key, "(c.create_time, c.id) > ($3, $4)", []any{at, "cert-7"}},
		{"created_at desc", key, "(c.create_time, c.id) < ($3, $4)", []any{at, "cert-7"}},
		{"seen_at", key, "((c.seen, c.id) > ($3, $4) OR c.seen IS NULL)", []any{at, "cert-7"}},
		{"seen_at desc", key, "(c.seen, c.id) < ($3, $4)", []any{at, "cert-7"}},
		{"seen_at", page.Value{}, "(c.seen IS NULL AND c.id > $3)", []any{"cert-7"}},
		{"seen_at desc", page.Value{}, "((c.seen IS NULL AND c.id < $3) OR c.seen IS NOT NULL)", []any{"cert-7"}},
		{"expires_at", page.Value{}, "(COALESCE(c.not_after, 'infinity'::timestamptz), c.id) > ('infinity'::timestamptz, $3)", []any{"cert-7"}},
	} {
		o, err := s.Parse(tc.order)
		require.NoError(t, err)
		where, args, err := o.After(o.Cursor(tc.key, id), 3)
		require.NoError(t, err)
		require.Equal(t, tc.where, where)
		require.Equal(t, tc.args, args)
	}
}

func TestTheBeginningHasNoCondition(t *testing.T) {
	t.Parallel()
	o, err := sorting(t).Parse("")
	require.NoError(t, err)
	where, args, err := o.After(nil, 1)
	require.NoError(t, err)
	require.Equal(t, "TRUE", where)
	require.Empty(t, args)
}

func TestAnOrderByTheIDAloneNeedsOneKey(t *testing.T) {
	t.Parallel()
	s, err := page.NewSorting(page.Column{Field: "sequence", SQL: "sequence", Kind: page.Int}, "sequence desc")
	require.NoError(t, err)
	o, err := s.Parse("")
	require.NoError(t, err)
	require.Equal(t, "sequence DESC", o.SQL())
	where, args, err := o.After(o.Cursor(page.Value{}, page.IntValue(9)), 1)
	require.NoError(t, err)
	require.Equal(t, "sequence < $1", where)
	require.Equal(t, []any{int64(9)}, args)
}

func TestACursorOfAnotherShapeIsRefused(t *testing.T) {
	t.Parallel()
	o, err := sorting(t).Parse("created_at")
	require.NoError(t, err)
	for _, c := range []page.Cursor{
		{page.TextValue("x")},
		{page.TextValue("x"), page.TextValue("y")},
		{page.Value{}, page.TextValue("y")},
		{page.TimeValue(time.Now()), page.IntValue(1)},
	} {
		_, _, err := o.After(c, 1)
		requireField(t, err, "page_token")
	}
}

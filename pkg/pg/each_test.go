package pg_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/pg"
)

func TestWhatCannotBeWrittenTogetherIsWrittenAlone(t *testing.T) {
	t.Parallel()
	bad := errors.New("three is bad")
	var wrote [][]int
	write := func(fails func(n int) error) func(items []int) ([]batch.Outcome[int], error) {
		wrote = nil
		return func(items []int) ([]batch.Outcome[int], error) {
			wrote = append(wrote, items)
			out := make([]batch.Outcome[int], len(items))
			for i, n := range items {
				if err := fails(n); err != nil {
					return nil, err
				}
				out[i].Value = n * n
			}
			return out, nil
		}
	}
	onThree := func(err error) func(int) error {
		return func(n int) error {
			if n == 3 {
				return err
			}
			return nil
		}
	}
	items := []int{2, 3, 4}

	require.Equal(t, []batch.Outcome[int]{{Value: 4}, {Value: 9}, {Value: 16}}, pg.AllOrEach(items, write(onThree(nil))))
	require.Len(t, wrote, 1)

	for _, err := range []error{pg.OfItem(bad), &pgconn.PgError{Code: "23505"}} {
		out := pg.AllOrEach(items, write(onThree(err)))
		require.Equal(t, []int{4, 0, 16}, []int{out[0].Value, out[1].Value, out[2].Value})
		require.NoError(t, out[0].Err)
		require.ErrorIs(t, out[1].Err, err)
		require.NoError(t, out[2].Err)
		require.Len(t, wrote, 4)
	}

	for _, err := range []error{bad, &pgconn.PgError{Code: "57P01"}} {
		for _, o := range pg.AllOrEach(items, write(onThree(err))) {
			require.ErrorIs(t, o.Err, err, "the database fails all of them, and is not asked for each")
		}
		require.Len(t, wrote, 1)
	}
	require.NoError(t, pg.OfItem(nil))
	require.ErrorIs(t, pg.OfItem(bad), bad)
}

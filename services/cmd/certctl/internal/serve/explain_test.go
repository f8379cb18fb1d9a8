package serve

import (
	"context"
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
)

func TestOnlyADatabaseThatIsAwayIsCalledAway(t *testing.T) {
	t.Parallel()
	explain := explainer("inventory")
	for _, cause := range []error{&pgconn.PgError{Code: "57P01"}, &pgconn.PgError{Code: "53300"}, syscall.EPIPE} {
		err := explain(fmt.Errorf("read certificate: %w", cause))
		require.Equal(t, errs.Unavailable, errs.KindOf(err), "%v", cause)
		require.Equal(t, "DATABASE_UNAVAILABLE", errs.ReasonOf(err))
		require.ErrorIs(t, err, cause)
	}
	for _, other := range []error{
		errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "no"), &pgconn.PgError{Code: "23505"}, context.Canceled,
		fmt.Errorf("read: %w", context.DeadlineExceeded), http.ErrBodyNotAllowed,
	} {
		require.Equal(t, other, explain(other))
	}
}

func TestATextThatNoDatabaseTakesIsTheCallersMistake(t *testing.T) {
	t.Parallel()
	err := explainer("issuance")(fmt.Errorf("store profile: %w", &pgconn.PgError{Code: "22021"}))
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	require.Equal(t, "TEXT_INVALID", errs.ReasonOf(err))
}

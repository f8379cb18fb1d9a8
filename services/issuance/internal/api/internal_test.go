package api

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
)

func TestAnAnswerWithoutViolationsIsOnlyForWhatIsAllowed(t *testing.T) {
	t.Parallel()
	found, err := violations(errs.Field("dns_names[0]", "is no name"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	for name, refusal := range map[string]error{
		"invalid without a field": errs.New(errs.Invalid, "NOT_LIKE_THIS", "not like this"),
		"unavailable":             errs.New(errs.Unavailable, "AWAY", "away"),
		"any other":               errors.New("lost"),
	} {
		found, err := violations(refusal)
		require.Error(t, err, name)
		require.Empty(t, found, name)
	}
	found, err = violations(nil)
	require.NoError(t, err)
	require.Empty(t, found)
}

package core

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

func TestOnlyAnOrderThatMayBeSubmittedTwiceIsTakenOverSoon(t *testing.T) {
	t.Parallel()
	c := Config{CallTimeout: 30 * time.Second}
	require.Equal(t, 10*time.Second, c.orderLease(&instance{caps: issuer.Capabilities{SerialNumber: true}}))
	for _, caps := range []issuer.Capabilities{{}, {Find: true}, {SerialNumber: true, Async: true}} {
		require.Greater(t, c.orderLease(&instance{caps: caps}), 2*c.CallTimeout, "%+v: a call may still run", caps)
	}
}

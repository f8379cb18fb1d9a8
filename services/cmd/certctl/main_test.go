package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestServicesAreCompleted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"__complete", "serve", "--service", ""})
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.Equal(t, "audit\ninventory\nissuance\nrenewalscheduler\nasyncpoller\ngateway\n:4\n", out.String())
}

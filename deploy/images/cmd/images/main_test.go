package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestABadFlagIsNamed(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"-created", "yesterday"}), "-created")
	require.ErrorContains(t, run(t.Context(), []string{"-root", t.TempDir(), "-out", t.TempDir()}), "build certctl for amd64")
}

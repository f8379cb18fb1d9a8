package core

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/secretbox"
)

func TestAnotherEncryptionKeyIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, w.replica().Bootstrap(w.ctx()))
	other, err := secretbox.NewBox(secretbox.GenerateKey())
	require.NoError(t, err)
	w.box = other
	err = w.replica().Bootstrap(w.ctx())
	require.ErrorIs(t, err, secretbox.ErrUnknownKey)
	require.ErrorContains(t, err, "CERTCTL_ENCRYPTION_KEY")
}

package peertls_test

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/peertls"
	"github.com/certctl/certctl/pkg/secretbox"
)

// handshake joins a client's and a server's configuration and answers the client's error.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Server(a, server).HandshakeContext(t.Context()) // the client's side is what is asserted
		_ = a.Close()
	}()
	err := tls.Client(b, client).HandshakeContext(t.Context())
	_ = b.Close()
	<-done
	return err
}

func TestServicesOfOneInstallationTrustEachOther(t *testing.T) {
	t.Parallel()
	secret := secretbox.NewSecret("0123456789abcdef")
	server, err := peertls.Server(secret, "audit")
	require.NoError(t, err)
	client, err := peertls.Client(secret, "audit")
	require.NoError(t, err)
	require.NoError(t, handshake(t, server, client))
}

func TestAnotherServiceOrAnotherSecretIsNotTrusted(t *testing.T) {
	t.Parallel()
	secret := secretbox.NewSecret("0123456789abcdef")
	server, err := peertls.Server(secret, "audit")
	require.NoError(t, err)
	other, err := peertls.Client(secret, "issuance")
	require.NoError(t, err)
	require.Error(t, handshake(t, server, other))
	stranger, err := peertls.Client(secretbox.NewSecret("another secret of sixteen bytes"), "audit")
	require.NoError(t, err)
	require.Error(t, handshake(t, server, stranger))
}

func TestAShortSecretIsRefused(t *testing.T) {
	t.Parallel()
	_, err := peertls.Server(secretbox.NewSecret("short"), "audit")
	require.Error(t, err)
}

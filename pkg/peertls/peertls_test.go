package peertls_test

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/peertls"
	"github.com/certctl/certctl/pkg/secretbox"
)

// handshake joins a client's and a server's configuration over loopback and answers the client's error.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the client's side is what is asserted
		_ = conn.Close()
	}()
	raw, err := net.Dial("tcp", lis.Addr().String())
	require.NoError(t, err)
	err = tls.Client(raw, client).HandshakeContext(t.Context())
	_ = raw.Close()
	<-done
	_ = lis.Close()
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

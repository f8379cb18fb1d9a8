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
	for _, text := range []string{"short", "0123456789abcdef,short"} {
		_, err := peertls.Server(secretbox.NewSecret(text), "audit")
		require.ErrorContains(t, err, "has 5 bytes: want at least 16")
		_, err = peertls.Client(secretbox.NewSecret(text), "audit")
		require.ErrorContains(t, err, "has 5 bytes: want at least 16")
	}
}

func TestServicesTrustEachOtherWhileTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	const before, after = "the-secret-of-before", "the-secret-of-after"
	meet := func(server, client string) error {
		s, err := peertls.Server(secretbox.NewSecret(server), "audit")
		require.NoError(t, err)
		c, err := peertls.Client(secretbox.NewSecret(client), "audit")
		require.NoError(t, err)
		return handshake(t, s, c)
	}
	stages := []string{before, before + "," + after, after + "," + before, after}
	for i := range stages[1:] {
		require.NoError(t, meet(stages[i], stages[i+1]), "a server of stage %d, a client of the next", i)
		require.NoError(t, meet(stages[i+1], stages[i]), "a client of stage %d, a server of the next", i)
	}
	require.Error(t, meet(before, after))
	require.Error(t, meet(stages[2], before), "a stage that is left out is noticed")
}

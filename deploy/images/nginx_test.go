package images

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deploy puts a certificate with a serial number in place as the agent does: one rename per file.
func deploy(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"www.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{"fullchain.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: der}} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600))
		require.NoError(t, os.Rename(path+".new", path))
	}
}

// served is the serial number of what a server shows; 0 if nobody answers.
func served(ctx context.Context, address string) int64 {
	d := tls.Dialer{Config: &tls.Config{ServerName: "www.example.com", InsecureSkipVerify: true}} // the test looks at the serial number
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return 0
	}
	defer conn.Close()
	c, ok := conn.(*tls.Conn)
	if !ok {
		return 0
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestNginxServesWhatTheAgentPutsInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := lis.Addr().String()
	require.NoError(t, lis.Close())
	b, err := os.ReadFile(filepath.Join(composeDir, "nginx", "nginx.conf"))
	require.NoError(t, err)
	// The same but for the places and the port.
	text := strings.NewReplacer("listen 8443", "listen "+address, "/srv/certctl/", dir+"/", "/tmp/", dir+"/").Replace(string(b))
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))

	cmd := exec.CommandContext(t.Context(), "/bin/sh", filepath.Join(composeDir, "nginx", "run"), dir, conf)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/usr/local/sbin")
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	shows := func(serial int64) {
		require.Eventually(t, func() bool { return served(t.Context(), address) == serial }, 30*time.Second, 50*time.Millisecond)
	}
	deploy(t, dir, 1)
	shows(1)
	deploy(t, dir, 2)
	shows(2)

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-ended)
	require.Zero(t, served(t.Context(), address), "nginx ends with it")
}

package target_test

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/targettest"
)

func TestAChainIsReadWithTheTextAroundIt(t *testing.T) {
	t.Parallel()
	ca := targettest.NewAuthority(t)
	m := ca.Issue(t, targettest.Name)
	text := "subject=x\n" + string(m.CertificatePEM) + "\n# the issuer\n" + string(m.ChainPEM) + "end\n"
	leaf, chain, err := target.ParseChain([]byte(text))
	require.NoError(t, err)
	require.Equal(t, targettest.Name, leaf.Subject.CommonName)
	require.Len(t, chain, 1)
	require.NoError(t, target.CheckChain(leaf, chain, time.Now()))
	require.NoError(t, target.CheckChain(leaf, append(chain, ca.Root), time.Now()))
	require.Error(t, target.CheckChain(leaf, []*x509.Certificate{ca.Root, chain[0]}, time.Now()))
	require.Error(t, target.CheckChain(leaf, chain, time.Now().Add(48*time.Hour)))
}

func TestWhatIsNoChainIsRefused(t *testing.T) {
	t.Parallel()
	m := targettest.NewAuthority(t).Issue(t, targettest.Name)
	one := string(m.CertificatePEM)
	for name, text := range map[string]string{
		"nothing":        "",
		"a key in it":    one + m.Key.Reveal(),
		"a damaged end":  one + "-----BEGIN CERTIFICATE-----\nMII",
		"too many":       strings.Repeat(one, 17),
		"too long":       one + strings.Repeat(" ", 256<<10),
		"no certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		_, _, err := target.ParseChain([]byte(text))
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "PRIVATE", name)
	}
}

func TestKeysFromOpenSSLFit(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"P-384":   {"ecparam", "-genkey", "-name", "secp384r1"},
		"RSA":     {"genrsa", "-traditional", "2048"},
		"PKCS8":   {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"Ed25519": {"genpkey", "-algorithm", "ed25519"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "key.pem")
		run(t, slices.Insert(args, 1, "-out", path)...)
		certificate := run(t, "req", "-x509", "-new", "-key", path, "-subj", "/CN=a", "-days", "1")
		key, err := os.ReadFile(path)
		require.NoError(t, err)
		leaf, _, err := target.ParseChain(certificate)
		require.NoError(t, err)
		require.NoError(t, target.KeyFits(leaf, key), name)
		require.Error(t, target.KeyFits(leaf, []byte(targettest.KeyPEM(t, targettest.NewKey(t)).Reveal())), name)
	}
}

func run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", args...).Output()
	require.NoError(t, err)
	return out
}

func FuzzParseChain(f *testing.F) {
	m := targettest.NewAuthority(f).Issue(f, targettest.Name)
	f.Add([]byte{})
	f.Add(m.CertificatePEM)
	f.Add(append(slices.Clone(m.CertificatePEM), m.ChainPEM...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaf, chain, err := target.ParseChain(data)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(chain), 15)
		again, more, err := target.ParseChain(targettest.PEM(append([]*x509.Certificate{leaf}, chain...)...))
		require.NoError(t, err)
		require.True(t, again.Equal(leaf))
		require.Len(t, more, len(chain))
	})
}

package local_test

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

func TestLoadFilesRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reason string
		spoil  func(t *testing.T, f *local.Files, m local.Material)
		field  string // key_file if it is empty
	}{
		"key of another CA": {"CA_KEY_MISMATCH", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Key = write(t, t.TempDir(), "key", []byte(newMaterial(t).IntermediateKey.Reveal()), 0o600)
		}, ""},
		"chain without its root": {"CA_CHAIN_INCOMPLETE", func(t *testing.T, f *local.Files, m local.Material) {
			f.Certificate = write(t, t.TempDir(), "ca", m.IntermediatePEM, 0o644)
		}, "certificate_file"},
		"key for the group":  {"CA_KEY_FILE_MODE", chmodKey(0o640), ""},
		"key for others":     {"CA_KEY_FILE_MODE", chmodKey(0o604), ""},
		"key others replace": {"CA_KEY_FILE_MODE", chmodKey(0o602), ""},
		"no key file": {"CA_FILE_UNREADABLE", func(_ *testing.T, f *local.Files, _ local.Material) {
			f.Key += ".gone"
		}, ""},
		"directory as key": {"CA_FILE_UNREADABLE", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Key = t.TempDir()
		}, ""},
		"key too long": {"CA_FILE_UNREADABLE", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Key = write(t, t.TempDir(), "key", make([]byte, 1<<20), 0o600)
		}, ""},
		"key with passphrase": {"CA_KEY_ENCRYPTED", func(t *testing.T, f *local.Files, _ local.Material) {
			text := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
			f.Key = write(t, t.TempDir(), "key", text, 0o600)
		}, ""},
		"text as key": {"CA_KEY_UNREADABLE", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Key = write(t, t.TempDir(), "key", []byte("hello"), 0o600)
		}, ""},
		"certificate as key": {"CA_KEY_UNREADABLE", func(t *testing.T, f *local.Files, m local.Material) {
			f.Key = write(t, t.TempDir(), "key", m.RootPEM, 0o600)
		}, ""},
		"text as certificate": {"CA_CERTIFICATE_UNREADABLE", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Certificate = write(t, t.TempDir(), "ca", []byte("hello"), 0o644)
		}, "certificate_file"},
		"no root file": {"CA_FILE_UNREADABLE", func(_ *testing.T, f *local.Files, _ local.Material) {
			f.Root = f.Key + ".gone"
		}, "root_file"},
		"pipe as key": {"CA_FILE_UNREADABLE", func(t *testing.T, f *local.Files, _ local.Material) {
			f.Key = filepath.Join(t.TempDir(), "pipe")
			run(t, t.TempDir(), "mkfifo", "-m", "600", f.Key)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaterial(t)
			f := writeMaterial(t, m)
			_, err := local.LoadFiles(f, time.Now())
			require.NoError(t, err, "before it is spoilt")
			c.spoil(t, &f, m)
			_, err = local.LoadFiles(f, time.Now())
			requireReason(t, c.reason, err)
			p, _ := issuer.AsPermanent(err)
			require.Equal(t, issuer.FaultConfiguration, p.Fault)
			require.Equal(t, cmp.Or(c.field, "key_file"), p.Field)
		})
	}
}

func TestRootMayStandInItsOwnFile(t *testing.T) {
	t.Parallel()
	m := newMaterial(t)
	f := writeMaterial(t, m)
	f.Certificate = write(t, t.TempDir(), "ca", m.IntermediatePEM, 0o644)
	f.Root = write(t, t.TempDir(), "root", m.RootPEM, 0o644)
	ca, err := local.LoadFiles(f, time.Now())
	require.NoError(t, err)
	require.Len(t, ca.Chain(), 2)
}

func TestEachUsualKeyEncodingIsRead(t *testing.T) {
	t.Parallel()
	ec := issuertest.NewKey(t, certcheck.ECDSAP384)
	sec1, err := x509.MarshalECPrivateKey(ec.(*ecdsa.PrivateKey))
	require.NoError(t, err)
	ed := issuertest.NewKey(t, certcheck.Ed25519)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ed)
	require.NoError(t, err)
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 5}})
	for text, key := range map[string]crypto.Signer{
		string(params) + string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})): ec,
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})):                    ed,
	} {
		dir := t.TempDir()
		ca, err := local.LoadFiles(local.Files{
			Certificate: write(t, dir, "ca", certcheck.EncodePEM(selfSigned(t, key, nil)), 0o644),
			Key:         write(t, dir, "key", []byte(text), 0o600),
		}, time.Now())
		require.NoError(t, err)
		require.Len(t, ca.Chain(), 1, "a root that issues itself is its own chain")
	}
}

func TestCACertificateIsChecked(t *testing.T) {
	t.Parallel()
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	for reason, change := range map[string]func(*x509.Certificate){
		"CA_NOT_A_CA": func(c *x509.Certificate) { c.IsCA = false },
		"CA_KEY_USAGE": func(c *x509.Certificate) {
			c.KeyUsage = x509.KeyUsageCertSign
		},
		"CA_EXPIRED": func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		},
		"CA_NOT_YET_VALID": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) },
	} {
		_, err := local.NewCA([]*x509.Certificate{selfSigned(t, key, change)}, nil, key, time.Now())
		requireReason(t, reason, err)
	}
	noCertSign := selfSigned(t, key, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	_, err := local.NewCA([]*x509.Certificate{noCertSign}, nil, key, time.Now())
	requireReason(t, "CA_KEY_USAGE", err)

	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	require.NoError(t, err)
	_, err = local.NewCA([]*x509.Certificate{selfSigned(t, p521, nil)}, nil, p521, time.Now())
	requireReason(t, "CA_KEY_UNSUPPORTED", err)
}

func TestExpiredRootAndShortPathAreFound(t *testing.T) {
	t.Parallel()
	rootKey, key := issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.NewKey(t, certcheck.ECDSAP256)
	for reason, change := range map[string]func(*x509.Certificate){
		"CA_EXPIRED": func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		},
		"CA_PATH_LENGTH": func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true },
	} {
		root := selfSigned(t, rootKey, change)
		ca := signed(t, key.Public(), root, rootKey, nil)
		_, err := local.NewCA([]*x509.Certificate{ca, root}, nil, key, time.Now())
		requireReason(t, reason, err)
	}
}

func TestCertificatesMayStandInAnyOrder(t *testing.T) {
	t.Parallel()
	m := newMaterial(t)
	f := writeMaterial(t, m)
	f.Certificate = write(t, t.TempDir(), "ca", slices.Concat(m.RootPEM, m.IntermediatePEM), 0o644)
	ca, err := local.LoadFiles(f, time.Now())
	require.NoError(t, err)
	require.Equal(t, parse(t, m.IntermediatePEM).Raw, ca.Certificate().Raw)
}

func TestSettingsAreJudgedFieldByField(t *testing.T) {
	t.Parallel()
	for settings, field := range map[string]string{
		`{"common_name":"` + strings.Repeat("a", 60) + `"}`:        "common_name",
		`{"country":"germany"}`:                                    "country",
		`{"certificate_file":"/ca.pem"}`:                           "key_file",
		`{"key_file":"/ca.key"}`:                                   "certificate_file",
		`{"certificate_file":"ca.pem","key_file":"/k"}`:            "certificate_file",
		`{"crl_urls":["http://a/b","ftp://a/b"]}`:                  "crl_urls[1]",
		`{"issuing_certificate_urls":["/b"]}`:                      "issuing_certificate_urls[0]",
		`{"crl_urls":"http://a/b"}`:                                "crl_urls",
		`{"certificate_file":"/c","key_file":"/k","country":"DE"}`: "certificate_file",
	} {
		err := local.Type().Validate(json.RawMessage(settings), nil)
		require.Equal(t, errs.Invalid, errs.KindOf(err), settings)
		require.Equal(t, field, errs.From(err).Violations()[0].Field, settings)
	}
	require.NoError(t, local.Type().Validate(nil, nil))
	files := json.RawMessage(`{"certificate_file":"/c","key_file":"/k"}`)
	require.NoError(t, local.Type().Validate(files, nil))
	require.Error(t, local.Type().Validate(files, []string{local.MaterialField}), "a self-made CA stays one")
}

func TestTypeMakesIssuersOfMaterialAndOfFiles(t *testing.T) {
	t.Parallel()
	typ, m := local.Type(), newMaterial(t)
	_, err := typ.New(t.Context(), issuer.Config{}, issuer.Deps{})
	requireReason(t, "CA_MATERIAL_MISSING", err)
	_, err = typ.New(t.Context(), issuer.Config{Secrets: map[string]secretbox.Secret{
		local.MaterialField: secretbox.NewSecret("{"),
	}}, issuer.Deps{})
	requireReason(t, "CA_MATERIAL_UNREADABLE", err)

	secret, err := m.Encode()
	require.NoError(t, err)
	f := writeMaterial(t, m)
	settings, err := json.Marshal(local.Settings{CertificateFile: f.Certificate, KeyFile: f.Key})
	require.NoError(t, err)
	for _, c := range []issuer.Config{
		{Secrets: map[string]secretbox.Secret{local.MaterialField: secret}},
		{Settings: settings},
	} {
		i, err := typ.New(t.Context(), c, issuer.Deps{})
		require.NoError(t, err)
		leaf := submit(t, i, newRequest(t, certcheck.ECDSAP256))
		require.NoError(t, leaf.CheckSignatureFrom(parse(t, m.IntermediatePEM)))
	}
}

func chmodKey(mode os.FileMode) func(*testing.T, *local.Files, local.Material) {
	return func(t *testing.T, f *local.Files, _ local.Material) {
		require.NoError(t, os.Chmod(f.Key, mode))
	}
}

func writeMaterial(t testing.TB, m local.Material) local.Files {
	t.Helper()
	dir := t.TempDir()
	return local.Files{
		Certificate: write(t, dir, "ca.pem", slices.Concat(m.IntermediatePEM, m.RootPEM), 0o644),
		Key:         write(t, dir, "ca.key", []byte(m.IntermediateKey.Reveal()), 0o600),
	}
}

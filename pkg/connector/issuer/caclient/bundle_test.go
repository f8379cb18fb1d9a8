package caclient_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// chain makes a leaf with its intermediate and root.
func chain(t testing.TB) (key crypto.Signer, leaf, intermediate, root *x509.Certificate) {
	t.Helper()
	material, err := local.Generate(local.Subject{CommonName: "Test"}, time.Now())
	require.NoError(t, err)
	ca, err := material.CA(time.Now())
	require.NoError(t, err)
	i, err := local.New(local.Config{CA: ca}, issuer.Deps{})
	require.NoError(t, err)
	key = issuertest.NewKey(t, certcheck.ECDSAP256)
	sub, err := i.Submit(t.Context(), issuertest.NewRequest(t, "ord", key, issuertest.Names(t, "a.example.com")))
	require.NoError(t, err)
	leaves, err := certcheck.ParseBundle(sub.CertificatePEM)
	require.NoError(t, err)
	above, err := i.Chain(t.Context())
	require.NoError(t, err)
	return key, leaves[0], above[0], above[1]
}

func forms(t testing.TB, certs ...*x509.Certificate) map[string][]byte {
	t.Helper()
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	p7, err := pkcs7.DegenerateCertificate(all)
	require.NoError(t, err)
	return map[string][]byte{
		"PEM":                certcheck.EncodePEM(certs...),
		"PEM with text":      slices.Concat([]byte("subject=x\r\n"), certcheck.EncodePEM(certs...), []byte("\n")),
		"PKCS#7":             p7,
		"PKCS#7 PEM":         pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: p7}),
		"PKCS#7 as CERT PEM": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p7}),
		"PKCS#7 base64":      []byte(base64.StdEncoding.EncodeToString(p7) + "\n"),
	}
}

func TestBundleIsReadInEachForm(t *testing.T) {
	t.Parallel()
	key, leaf, intermediate, root := chain(t)
	for form, raw := range forms(t, root, intermediate, leaf) {
		bundle, err := caclient.ParseBundle(raw)
		require.NoError(t, err, form)
		require.Len(t, bundle, 3, form)
		require.True(t, bundle.Leaf(key.Public()).Equal(leaf), form)
		first, rest := bundle.Split(caclient.KeyID(key.Public()))
		require.Equal(t, certcheck.EncodePEM(leaf), first, form)
		require.Equal(t, certcheck.EncodePEM(intermediate), rest, "without the root: %s", form)
	}
	for form, raw := range map[string][]byte{"DER": leaf.Raw, "base64": []byte(base64.StdEncoding.EncodeToString(leaf.Raw))} {
		bundle, err := caclient.ParseBundle(raw)
		require.NoError(t, err, form)
		require.True(t, bundle[0].Equal(leaf), form)
	}
}

func TestBundleWithoutTheKeyIsPassedWhole(t *testing.T) {
	t.Parallel()
	_, leaf, intermediate, root := chain(t)
	other := issuertest.NewKey(t, certcheck.ECDSAP256)
	bundle := caclient.Bundle{root, leaf, intermediate}
	require.Nil(t, bundle.Leaf(other.Public()))
	first, rest := bundle.Split(caclient.KeyID(other.Public()))
	require.Equal(t, certcheck.EncodePEM(root, leaf, intermediate), first)
	require.Empty(t, rest)
	first, _ = bundle.Split("")
	require.Equal(t, certcheck.EncodePEM(root, leaf, intermediate), first)
	require.Empty(t, caclient.KeyID("no key"))
}

func TestBundleIsRefused(t *testing.T) {
	t.Parallel()
	_, leaf, _, _ := chain(t)
	whole := certcheck.EncodePEM(leaf)
	for what, raw := range map[string][]byte{
		"empty": {}, "text": []byte("hello"), "a page": []byte("<html></html>"), "cut": whole[:len(whole)-40],
		"a private key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"too much":      bytes.Repeat(whole, certcheck.MaxBundle/len(whole)+1),
		"too many":      bytes.Repeat(whole, certcheck.MaxCertificates+1),
	} {
		_, err := caclient.ParseBundle(raw)
		require.Error(t, err, what)
		require.Less(t, len(err.Error()), 400, what)
	}
}

// The corpus is in testdata: each form of a bundle of leaf, intermediate and root.
func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		bundle, err := caclient.ParseBundle(raw)
		if err != nil {
			return
		}
		require.NotEmpty(t, bundle)
		first, rest := bundle.Split(caclient.KeyID(bundle[0].PublicKey))
		_, err = certcheck.ParseBundle(slices.Concat(first, rest))
		require.NoError(t, err)
	})
}

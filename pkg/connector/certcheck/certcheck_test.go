package certcheck_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/errs"
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

func TestNamesGetTheirCanonicalForm(t *testing.T) {
	t.Parallel()
	n, err := certcheck.ParseNames(certcheck.RawNames{
		CommonName:     "WWW.Example.com",
		DNSNames:       []string{"www.EXAMPLE.com", "www.example.com", "*.example.com", "Bücher.example", "localhost", "XN--bcher-kva.example"},
		IPAddresses:    []string{"192.0.2.1", "::ffff:192.0.2.1", "2001:DB8:0::1"},
		EmailAddresses: []string{"Ops@Example.com"},
		URIs:           []string{"SPIFFE://Example.com/Web", "urn:uuid:f81d4fae", "https://[2001:DB8::1]:8443/x"},
	})
	require.NoError(t, err)
	require.Equal(t, certcheck.RawNames{
		CommonName:     "www.example.com",
		DNSNames:       []string{"www.example.com", "*.example.com", "xn--bcher-kva.example", "localhost"},
		IPAddresses:    []string{"192.0.2.1", "2001:db8::1"},
		EmailAddresses: []string{"Ops@example.com"},
		URIs:           []string{"spiffe://example.com/Web", "urn:uuid:f81d4fae", "https://[2001:db8::1]:8443/x"},
	}, n.Raw())
}

func TestEachBadNameIsNamedByItsIndex(t *testing.T) {
	t.Parallel()
	bad := certcheck.RawNames{
		DNSNames: []string{
			"", ".", "a..b", "-a.example", "a-.example", "a_b.example", "a b.example", "example.com.", "*", "*.", "*.com",
			"*.*.example.com", "www.*.example.com", "w*.example.com", "192.0.2.1", "host.123", "ab--c.example", "xn--a.example",
			"xn--.example", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 130) + "a", "a\x00.example.com", "ex\u200bample.com",
			"https://example.com", "example.com:443", "a@example.com", "\xff.example", "*." + strings.Repeat("a.", 125) + "aa",
		},
		IPAddresses:    []string{"", "192.0.2", "192.0.2.1/32", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "example.com", "192.0.2.01"},
		EmailAddresses: []string{"", "a", "a@", "@b.example", "A <a@b.example>", "a@b_c.example", "a@*.b.example", "ü@b.example", `"a b"@b.example`, "a@b.example\n", strings.Repeat("a", 65) + "@b.example"},
		URIs:           []string{"", "/x", "example.com", "https://", "https:///x", "https://user@example.com", "https://a_b.example", "https://*.example.com", "https://example.com/ü", "https://example.com/ x", "https://example.com:99999", "https://[fe80::1%25eth0]/", "spiffe://%zz", "https://" + strings.Repeat("a", 3000)},
	}
	_, err := certcheck.ParseNames(bad)
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	fields := map[string]string{}
	for _, v := range errs.From(err).Violations() {
		fields[v.Field] = v.Description
	}
	for field, list := range map[string][]string{
		"dns_names": bad.DNSNames, "ip_addresses": bad.IPAddresses, "email_addresses": bad.EmailAddresses, "uris": bad.URIs,
	} {
		for i, s := range list {
			require.Contains(t, fields, field+"["+strconv.Itoa(i)+"]", "%q", s)
		}
	}
}

func TestNamesAreNeededAndBounded(t *testing.T) {
	t.Parallel()
	_, err := certcheck.ParseNames(certcheck.RawNames{CommonName: "www.example.com"})
	require.ErrorContains(t, err, "at least one")
	_, err = certcheck.ParseNames(certcheck.RawNames{DNSNames: make([]string, certcheck.MaxNames+1)})
	require.ErrorContains(t, err, "the most is 250")
}

func TestCommonNameIsOneOfTheNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 60) + ".example.com"
	names := certcheck.RawNames{DNSNames: []string{"www.example.com", long}, IPAddresses: []string{"2001:db8::1"}}
	for cn, want := range map[string]string{"": "", "WWW.example.com": "www.example.com", "2001:DB8::1": "2001:db8::1"} {
		names.CommonName = cn
		got, err := certcheck.ParseNames(names)
		require.NoError(t, err)
		require.Equal(t, want, got.CommonName)
	}
	for _, cn := range []string{"other.example.com", "My Server", long} {
		names.CommonName = cn
		_, err := certcheck.ParseNames(names)
		require.Equal(t, "common_name", errs.From(err).Violations()[0].Field, cn)
	}
}

func TestCSRThatAsksForExactlyTheNamesPasses(t *testing.T) {
	t.Parallel()
	for _, key := range keys(t) {
		for _, change := range []func(*x509.CertificateRequest){
			func(*x509.CertificateRequest) {},
			func(c *x509.CertificateRequest) { c.Subject = pkix.Name{} },
			func(c *x509.CertificateRequest) { c.DNSNames = []string{"*.EXAMPLE.com", "WWW.example.com"} },
			func(c *x509.CertificateRequest) { c.Subject = pkix.Name{Organization: []string{"Example"}} },
		} {
			der := csr(t, key, change)
			got, err := certcheck.CheckCSR(der, certcheck.Want{Names: names(t)})
			require.NoError(t, err)
			require.Equal(t, der, got.Raw)
			_, err = certcheck.CheckCSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), certcheck.Want{Names: names(t)})
			require.NoError(t, err)
		}
	}
}

func TestCSRIsRefused(t *testing.T) {
	t.Parallel()
	other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}}
	directory := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}}
	for want, change := range map[string]func(*x509.CertificateRequest){
		"asks for DNS evil.example.com":          func(c *x509.CertificateRequest) { c.DNSNames = append(c.DNSNames, "evil.example.com") },
		"does not ask for DNS www.example.com":   func(c *x509.CertificateRequest) { c.DNSNames = c.DNSNames[1:] },
		"does not ask for URI spiffe":            func(c *x509.CertificateRequest) { c.URIs = nil },
		"asks for IP 192.0.2.9":                  func(c *x509.CertificateRequest) { c.IPAddresses = append(c.IPAddresses, net.IPv4(192, 0, 2, 9)) },
		"asks for email x@example.com":           func(c *x509.CertificateRequest) { c.EmailAddresses = append(c.EmailAddresses, "x@example.com") },
		"its subject names \"evil.example.com\"": func(c *x509.CertificateRequest) { c.Subject.CommonName = "evil.example.com" },
		"its subject names 2 things": func(c *x509.CertificateRequest) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{
				{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "www.example.com"},
				{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "evil@example.com"},
			}
		},
		"otherName":     extraSAN(t, other),
		"directoryName": extraSAN(t, directory),
		"asks to become a CA": func(c *x509.CertificateRequest) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}})
		},
		"is signed with SHA1-RSA": nil,
	} {
		key := crypto.Signer(ecKey(t))
		if change == nil {
			key = rsaKey(t, 2048)
			change = func(c *x509.CertificateRequest) { c.SignatureAlgorithm = x509.SHA1WithRSA }
		}
		_, err := certcheck.CheckCSR(csr(t, key, change), certcheck.Want{Names: names(t)})
		requireCSRViolation(t, err, want)
	}
}

func TestCSRKeyIsRefused(t *testing.T) {
	t.Parallel()
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	require.NoError(t, err)
	for _, key := range []crypto.Signer{p224, p521, rsaKey(t, 1024), rsaKey(t, 2056)} {
		_, err := certcheck.CheckCSR(csr(t, key, nil), certcheck.Want{Names: names(t)})
		require.Error(t, err)
	}
	_, err = certcheck.CheckCSR(csr(t, ecKey(t), nil), certcheck.Want{Names: names(t), KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.RSA2048}})
	requireCSRViolation(t, err, "the key is ECDSA_P256, allowed is [RSA_2048]")
}

func TestRSAKeysAreSane(t *testing.T) {
	t.Parallel()
	good := rsaKey(t, 2048).PublicKey
	algorithm, err := certcheck.CheckKey(&good)
	require.NoError(t, err)
	require.Equal(t, certcheck.RSA2048, algorithm)
	even := new(big.Int).Lsh(big.NewInt(1), 2047)
	for _, bad := range []rsa.PublicKey{
		{N: good.N, E: 3}, {N: good.N, E: 65538}, {N: good.N, E: 1 << 31}, {N: good.N, E: 1},
		{N: even, E: 65537}, {N: new(big.Int).Add(even, new(big.Int).Sub(big.NewInt(751), new(big.Int).Mod(even, big.NewInt(751)))), E: 65537},
	} {
		_, err := certcheck.CheckKey(&bad)
		require.Error(t, err)
	}
	_, err = certcheck.CheckKey(ed25519.PublicKey{1})
	require.Error(t, err)
	_, err = certcheck.CheckKey(nil)
	require.Error(t, err)
}

func TestCSRBytesAreRefused(t *testing.T) {
	t.Parallel()
	der := csr(t, ecKey(t), nil)
	armoured := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	forged := slices.Clone(der)
	forged[len(forged)-1] ^= 1
	for name, raw := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "behind DER": append(slices.Clone(der), 0), "cut": der[:len(der)-1],
		"behind PEM": append(slices.Clone(armoured), 'x'), "two": append(slices.Clone(armoured), armoured...),
		"certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "broken PEM": armoured[:len(armoured)-9],
		"too long": append(slices.Clone(der), make([]byte, certcheck.MaxCSR)...), "signature": forged,
	} {
		_, err := certcheck.CheckCSR(raw, certcheck.Want{Names: names(t)})
		require.Equal(t, errs.Invalid, errs.KindOf(err), name)
		require.Equal(t, "csr", errs.From(err).Violations()[0].Field, name)
	}
}

func TestIssuedBundleIsOrderedInAnyOrder(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	leaf, key := p.leaf(t, nil)
	stranger, _ := newPKI(t).leaf(t, nil)
	for _, bundle := range [][]*x509.Certificate{
		{leaf, p.lower, p.upper, p.root}, {p.root, p.upper, p.lower, leaf}, {p.upper, leaf, stranger, p.lower, p.root, leaf}, {leaf, p.upper, p.lower},
	} {
		for _, roots := range [][]*x509.Certificate{nil, {p.root}} {
			c, err := certcheck.CheckIssued(certcheck.EncodePEM(bundle...), certcheck.Issued{
				PublicKey: key.Public(), Names: names(t), Now: time.Now(), Roots: roots, NotAfter: leaf.NotAfter,
				SerialNumber: leaf.SerialNumber, ExtKeyUsages: leaf.ExtKeyUsage,
			})
			require.NoError(t, err)
			require.Equal(t, leaf.Raw, c.Leaf.Raw)
			require.Equal(t, certcheck.EncodePEM(leaf), c.CertificatePEM())
			if roots != nil || slices.Contains(bundle, p.root) {
				require.Equal(t, certcheck.EncodePEM(p.lower, p.upper), c.ChainPEM())
				require.Equal(t, p.root.Raw, c.Root.Raw)
			} else {
				require.Equal(t, certcheck.EncodePEM(p.lower, p.upper), c.ChainPEM())
				require.Nil(t, c.Root)
			}
		}
	}
}

func TestIssuedTextAroundTheBlocksIsSkipped(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	leaf, key := p.leaf(t, nil)
	text := "subject=CN=www\r\n" + string(certcheck.EncodePEM(leaf)) + "\nissuer=\n" + string(certcheck.EncodePEM(p.lower))
	_, err := certcheck.CheckIssued([]byte(text), certcheck.Issued{PublicKey: key.Public(), Names: names(t)})
	require.NoError(t, err)
}

func TestIssuedDifferenceIsNamed(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	now := time.Now()
	for _, c := range []struct {
		what   string
		detail string
		leaf   func(*x509.Certificate)
		want   func(*certcheck.Issued)
	}{
		{"public key", "none of the 2 certificates", nil, func(w *certcheck.Issued) { w.PublicKey = ecKey(t).Public() }},
		{"names", "DNS evil.example.com was not asked for", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "evil.example.com") }, nil},
		{"names", "DNS www.example.com was asked for and is not there", func(c *x509.Certificate) { c.DNSNames = c.DNSNames[1:] }, nil},
		{"names", `subject "evil.example.com" was not asked for`, func(c *x509.Certificate) { c.Subject.CommonName = "evil.example.com" }, nil},
		{"names", "otherName", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: []byte{0x30, 5, 0xa0, 3, 6, 1, 42}}}
		}, nil},
		{"validity", "the latest allowed is", nil, func(w *certcheck.Issued) { w.NotAfter = now.Add(time.Minute) }},
		{"validity", "ended already", nil, func(w *certcheck.Issued) { w.Now = now.Add(2 * time.Hour) }},
		{"validity", "begins only at", func(c *x509.Certificate) { c.NotBefore = now.Add(30 * time.Minute) }, nil},
		{"validity", "before it begins", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now, now.Add(-time.Hour) }, nil},
		{"key usage", "was asked for and is not there", nil, func(w *certcheck.Issued) { w.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }},
		{"serial number", "asked for was 5", nil, func(w *certcheck.Issued) { w.SerialNumber = big.NewInt(5) }},
		{"leaf", "is a CA certificate", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, nil},
		{"chain", "does not lead to a trusted root", nil, func(w *certcheck.Issued) { w.Roots = []*x509.Certificate{newPKI(t).root} }},
	} {
		leaf, key := p.leaf(t, c.leaf)
		want := certcheck.Issued{PublicKey: key.Public(), Names: names(t), Now: now}
		if c.want != nil {
			c.want(&want)
		}
		_, err := certcheck.CheckIssued(certcheck.EncodePEM(p.lower, leaf), want)
		require.ErrorContains(t, err, c.what+": ")
		require.ErrorContains(t, err, c.detail)
		var m *certcheck.Mismatch
		require.ErrorAs(t, err, &m)
	}
}

func TestIssuedBundleIsRefused(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	leaf, key := p.leaf(t, nil)
	twin := *p
	second, err := x509.ParseCertificate(twin.sign(t, key.Public(), nil))
	require.NoError(t, err)
	good := certcheck.EncodePEM(leaf, p.lower)
	forged, err := x509.ParseCertificate(flipLast(leaf.Raw))
	require.NoError(t, err)
	var many []byte
	for range certcheck.MaxCertificates + 1 {
		c, _ := p.leaf(t, nil)
		many = append(many, certcheck.EncodePEM(c)...)
	}
	for want, bundle := range map[string][]byte{
		"holds no certificate":       []byte("hello"),
		"bundle: holds a broken PEM": append(slices.Clone(good), "-----BEGIN CERTIFICATE-----\nAA"...),
		`type "PRIVATE KEY"`:         append(slices.Clone(good), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})...),
		"cannot be read":             pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}),
		"does not hold the issuer":   certcheck.EncodePEM(leaf),
		"2 certificates are for":     certcheck.EncodePEM(leaf, second, p.lower),
		"chain: ":                    certcheck.EncodePEM(forged, p.lower),
		"holds more than 16":         many,
		"bytes: the most is":         make([]byte, certcheck.MaxBundle+1),
	} {
		_, err := certcheck.CheckIssued(bundle, certcheck.Issued{PublicKey: key.Public(), Names: names(t), Now: time.Now()})
		require.ErrorContains(t, err, want)
	}
}

func FuzzParseNames(f *testing.F) {
	for _, s := range []string{"www.example.com", "*.example.com", "bücher.example", "192.0.2.1", "a@b.example", "spiffe://a/b", "urn:a:b", "xn--bcher-kva.example", "http://[::1]:1/%41"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, in := range []certcheck.RawNames{
			{DNSNames: []string{s}}, {IPAddresses: []string{s}}, {EmailAddresses: []string{s}}, {URIs: []string{s}},
		} {
			n, err := certcheck.ParseNames(in)
			if err != nil {
				continue
			}
			again, err := certcheck.ParseNames(n.Raw())
			require.NoError(t, err, "the canonical form of %q is itself valid", s)
			require.Equal(t, n, again, "and stays as it is")
			// What is a name here must be one for the encoder and parser of certificates too.
			key := fuzzKey()
			got, err := certcheck.CheckCSR(csrFor(t, key, n), certcheck.Want{Names: n})
			require.NoError(t, err, "%q", s)
			require.NotNil(t, got)
		}
	})
}

func FuzzCheckCSR(f *testing.F) {
	key := fuzzKey()
	f.Add(csr(f, key, nil))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr(f, key, nil)}))
	want := names(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := certcheck.CheckCSR(raw, certcheck.Want{Names: want})
		if err != nil {
			require.Equal(t, errs.Invalid, errs.KindOf(err))
			return
		}
		require.NoError(t, got.CheckSignature())
	})
}

func FuzzCheckIssued(f *testing.F) {
	p := newPKI(f)
	leaf, key := p.leaf(f, nil)
	want := certcheck.Issued{PublicKey: key.Public(), Names: names(f), Roots: []*x509.Certificate{p.root}}
	f.Add(certcheck.EncodePEM(leaf, p.lower, p.upper, p.root))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		c, err := certcheck.CheckIssued(bundle, want)
		if err != nil {
			return
		}
		require.Equal(t, leaf.RawTBSCertificate, c.Leaf.RawTBSCertificate, "only what the CA signed passes")
	})
}

// pki is a root with two CAs below it.
type pki struct {
	root, upper, lower *x509.Certificate
	lowerKey           crypto.Signer
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	rootKey, upperKey, lowerKey := ecKey(t), ecKey(t), ecKey(t)
	root := makeCA(t, "root", nil, rootKey.Public(), rootKey)
	upper := makeCA(t, "upper", root, upperKey.Public(), rootKey)
	return &pki{root: root, upper: upper, lower: makeCA(t, "lower", upper, lowerKey.Public(), upperKey), lowerKey: lowerKey}
}

func makeCA(t testing.TB, name string, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + " " + rand.Text()[:6]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by)
	require.NoError(t, err)
	out, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return out
}

func (p *pki) leaf(t testing.TB, change func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := ecKey(t)
	c, err := x509.ParseCertificate(p.sign(t, key.Public(), change))
	require.NoError(t, err)
	return c, key
}

func (p *pki) sign(t testing.TB, pub crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	n := names(t)
	urls, err := n.URLs()
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: n.CommonName},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		DNSNames: slices.Clone(n.DNSNames), IPAddresses: ips(n), EmailAddresses: n.EmailAddresses, URIs: urls,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.lower, pub, p.lowerKey)
	require.NoError(t, err)
	return der
}

func names(t testing.TB) certcheck.Names {
	t.Helper()
	n, err := certcheck.ParseNames(certcheck.RawNames{
		CommonName: "www.example.com", DNSNames: []string{"www.example.com", "*.example.com"}, IPAddresses: []string{"192.0.2.1"},
		EmailAddresses: []string{"ops@example.com"}, URIs: []string{"spiffe://example.com/web"},
	})
	require.NoError(t, err)
	return n
}

func csr(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	n := names(t)
	urls, err := n.URLs()
	require.NoError(t, err)
	c := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: n.CommonName}, DNSNames: slices.Clone(n.DNSNames), IPAddresses: ips(n),
		EmailAddresses: slices.Clone(n.EmailAddresses), URIs: urls,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, c, key)
	require.NoError(t, err)
	return der
}

func csrFor(t testing.TB, key crypto.Signer, n certcheck.Names) []byte {
	t.Helper()
	return csr(t, key, func(c *x509.CertificateRequest) {
		urls, err := n.URLs()
		require.NoError(t, err)
		c.Subject = pkix.Name{}
		c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs = n.DNSNames, ips(n), n.EmailAddresses, urls
	})
}

// extraSAN adds a name of a kind that x509 cannot write.
func extraSAN(t testing.TB, extra asn1.RawValue) func(*x509.CertificateRequest) {
	t.Helper()
	return func(c *x509.CertificateRequest) {
		var list []asn1.RawValue
		for _, d := range c.DNSNames {
			list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(d)})
		}
		der, err := asn1.Marshal(append(list, extra))
		require.NoError(t, err)
		c.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: der}}
	}
}

func requireCSRViolation(t testing.TB, err error, want string) {
	t.Helper()
	require.Equal(t, errs.Invalid, errs.KindOf(err), want)
	var all []string
	for _, v := range errs.From(err).Violations() {
		require.Equal(t, "csr", v.Field)
		all = append(all, v.Description)
	}
	require.Contains(t, strings.Join(all, "\n"), want)
}

func ips(n certcheck.Names) []net.IP {
	var out []net.IP
	for _, ip := range n.IPAddresses {
		out = append(out, ip.AsSlice())
	}
	return out
}

func keys(t testing.TB) []crypto.Signer {
	t.Helper()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return []crypto.Signer{ecKey(t), p384, ed, rsaKey(t, 2048), rsaKey(t, 3072)}
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func fuzzKey() crypto.Signer {
	return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	require.NoError(t, err)
	return key
}

func flipLast(raw []byte) []byte {
	out := slices.Clone(raw)
	out[len(out)-1] ^= 1
	return out
}

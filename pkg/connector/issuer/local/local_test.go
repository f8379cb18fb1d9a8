package local_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func TestSelfMadeCAConforms(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type: local.Type(),
		New:  func(t testing.TB) issuer.Issuer { return newIssuer(t, newCA(t)) },
	})
}

func TestSubordinateCAFromFilesConforms(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type: local.Type(),
		New: func(t testing.TB) issuer.Issuer {
			f := writeMaterial(t, newMaterial(t))
			ca, err := local.LoadFiles(f, time.Now())
			require.NoError(t, err)
			return newIssuer(t, ca)
		},
	})
}

func TestSameIntentGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.RSA2048, certcheck.Ed25519} {
		ca := caWithKey(t, issuertest.NewKey(t, algorithm))
		r := newRequest(t, certcheck.ECDSAP256)
		first := submit(t, newIssuer(t, ca), r)
		again := submit(t, newIssuer(t, ca), r)
		require.Equal(t, first.Raw, again.Raw, algorithm)
	}
}

func TestCAIsTheSameAfterARestart(t *testing.T) {
	t.Parallel()
	m := newMaterial(t)
	stored, err := m.Encode()
	require.NoError(t, err)
	require.Equal(t, "***", fmt.Sprint(stored))
	again, err := local.DecodeMaterial(stored)
	require.NoError(t, err)
	require.Equal(t, m, again)

	r := newRequest(t, certcheck.ECDSAP256)
	leaf := submit(t, newIssuer(t, caOf(t, m)), r)
	require.NoError(t, leaf.CheckSignatureFrom(caOf(t, again).Certificate()))
}

func TestRenewedIntermediateIsTheSameCAForOldCertificatesAndOneCRL(t *testing.T) {
	t.Parallel()
	m := newMaterial(t)
	leaf := submit(t, newIssuer(t, caOf(t, m)), newRequest(t, certcheck.ECDSAP256))
	next, err := local.RenewIntermediate(m, time.Now().AddDate(0, 0, 1))
	require.NoError(t, err)
	old, renewed := caOf(t, m).Certificate(), parse(t, next.IntermediatePEM)
	require.Equal(t, old.RawSubject, renewed.RawSubject)
	require.Equal(t, old.SubjectKeyId, renewed.SubjectKeyId)
	require.True(t, certcheck.SameKey(old.PublicKey, renewed.PublicKey))
	require.NotZero(t, old.SerialNumber.Cmp(renewed.SerialNumber))
	require.Equal(t, m.RootPEM, next.RootPEM)
	require.True(t, renewed.MaxPathLenZero)
	require.NoError(t, renewed.CheckSignatureFrom(parse(t, m.RootPEM)))
	require.NoError(t, leaf.CheckSignatureFrom(renewed))

	tomorrow := time.Now().AddDate(0, 0, 1)
	ca, err := next.CA(tomorrow)
	require.NoError(t, err)
	i, err := local.New(local.Config{CA: ca}, issuer.Deps{Now: func() time.Time { return tomorrow }})
	require.NoError(t, err)
	list, err := x509.ParseRevocationList(signCRL(t, i, issuer.CRLRequest{Number: big.NewInt(1), ThisUpdate: tomorrow, NextUpdate: tomorrow.Add(time.Hour)}))
	require.NoError(t, err)
	for _, c := range []*x509.Certificate{old, renewed} {
		require.NoError(t, list.CheckSignatureFrom(c))
		require.Equal(t, c.SubjectKeyId, list.AuthorityKeyId)
	}

	late, err := local.RenewIntermediate(m, time.Now().AddDate(9, 0, 0))
	require.NoError(t, err)
	require.Equal(t, parse(t, m.RootPEM).NotAfter, parse(t, late.IntermediatePEM).NotAfter, "never beyond the root's end")
	_, err = local.RenewIntermediate(m, time.Now().AddDate(11, 0, 0))
	requireReason(t, "CA_EXPIRED", err)
}

func TestAnIntermediateIsRenewedInTimeAndNotForNothing(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	begin := time.Now()
	m := newMaterial(t)
	renewed, err := local.RenewIntermediate(m, begin.AddDate(8, 0, 0))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		m          local.Material
		after      time.Duration
		need       time.Duration
		due, short bool
	}{
		"new":                               {m, day, 90 * day, false, false},
		"two thirds are over":               {m, 1225 * day, 90 * day, true, false},
		"shortly before":                    {m, 1200 * day, 90 * day, false, false},
		"a long profile":                    {m, 800 * day, 4 * 365 * day, true, false},
		"no profile is longer than what is": {m, 300 * day, 4 * 365 * day, false, false},
		"a need that cannot be met":         {m, 10 * day, 10 * 365 * day, false, false},
		"the same some months later":        {m, 100 * day, 10 * 365 * day, true, false},
		"expired while nobody was there":    {m, 6 * 365 * day, 90 * day, true, false},
		"as long as its root":               {renewed, 9 * 365 * day, 2 * 365 * day, false, true},
	} {
		got, err := c.m.Renewal(begin.Add(c.after), c.need)
		require.NoError(t, err)
		require.Equal(t, c.due, got.Due, name)
		require.Equal(t, c.short, got.Short, name)
	}
}

func TestLeafHoldsWhatTheProfileDecided(t *testing.T) {
	t.Parallel()
	i, err := local.New(local.Config{
		CA: newCA(t), CRLURLs: []string{"http://ca.example.com/crl/iss-local.crl"},
		IssuingCertificateURLs: []string{"http://ca.example.com/ca.crt"},
	}, issuer.Deps{})
	require.NoError(t, err)
	r := newRequest(t, certcheck.ECDSAP256)
	r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	leaf := submit(t, i, r)
	require.Zero(t, leaf.SerialNumber.Cmp(r.SerialNumber))
	require.Equal(t, r.RequestedAt.UTC().Truncate(time.Second).Add(-time.Minute), leaf.NotBefore)
	require.Equal(t, r.RequestedAt.UTC().Truncate(time.Second).Add(r.Lifetime), leaf.NotAfter)
	require.Equal(t, x509.KeyUsageDigitalSignature, leaf.KeyUsage)
	require.Equal(t, r.ExtKeyUsages, leaf.ExtKeyUsage)
	require.Equal(t, []string{"http://ca.example.com/crl/iss-local.crl"}, leaf.CRLDistributionPoints)
	require.Equal(t, []string{"http://ca.example.com/ca.crt"}, leaf.IssuingCertificateURL)
	require.True(t, leaf.BasicConstraintsValid)
	require.False(t, leaf.IsCA)
	require.NotEmpty(t, leaf.AuthorityKeyId)
	require.True(t, critical(leaf, 2, 5, 29, 19), "basicConstraints")
	require.True(t, critical(leaf, 2, 5, 29, 15), "keyUsage")
	require.False(t, critical(leaf, 2, 5, 29, 17), "subjectAltName with a subject")
}

func TestNamesWithoutSubjectAreCritical(t *testing.T) {
	t.Parallel()
	r := newRequest(t, certcheck.ECDSAP256)
	r.Names.CommonName = ""
	leaf := submit(t, newIssuer(t, newCA(t)), r)
	require.Empty(t, leaf.Subject.Names)
	require.True(t, critical(leaf, 2, 5, 29, 17))
}

func TestEachKeyHasItsOwnIdentifier(t *testing.T) {
	t.Parallel()
	i, seen := newIssuer(t, newCA(t)), map[string]bool{}
	for _, algorithm := range []certcheck.KeyAlgorithm{certcheck.Ed25519, certcheck.Ed25519, certcheck.ECDSAP256, certcheck.RSA2048} {
		seen[string(submit(t, i, newRequest(t, algorithm)).SubjectKeyId)] = true
	}
	require.Len(t, seen, 4)
}

func TestKeyUsageFitsTheKey(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newCA(t))
	const sign, encipher = x509.KeyUsageDigitalSignature, x509.KeyUsageKeyEncipherment
	for _, c := range []struct {
		key  certcheck.KeyAlgorithm
		want x509.KeyUsage
		eku  x509.ExtKeyUsage
		got  x509.KeyUsage
	}{
		{certcheck.RSA2048, 0, x509.ExtKeyUsageServerAuth, sign | encipher},
		{certcheck.RSA2048, 0, x509.ExtKeyUsageClientAuth, sign},
		{certcheck.ECDSAP256, 0, x509.ExtKeyUsageServerAuth, sign},
		{certcheck.Ed25519, 0, x509.ExtKeyUsageServerAuth, sign},
		{certcheck.RSA2048, sign | encipher | x509.KeyUsageKeyAgreement, x509.ExtKeyUsageServerAuth, sign | encipher},
		{certcheck.ECDSAP256, sign | encipher | x509.KeyUsageKeyAgreement, x509.ExtKeyUsageServerAuth, sign | x509.KeyUsageKeyAgreement},
		{certcheck.Ed25519, sign | encipher, x509.ExtKeyUsageServerAuth, sign},
	} {
		r := newRequest(t, c.key)
		r.KeyUsage, r.ExtKeyUsages = c.want, []x509.ExtKeyUsage{c.eku}
		require.Equal(t, c.got, submit(t, i, r).KeyUsage, "%+v", c)
	}
}

func TestLeafNeverOutlivesItsCA(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	late := ca.NotAfter().Add(-time.Hour)
	i, err := local.New(local.Config{CA: ca}, issuer.Deps{Now: func() time.Time { return late }})
	require.NoError(t, err)
	r := newRequest(t, certcheck.ECDSAP256)
	r.RequestedAt = time.Time{}
	require.Equal(t, ca.NotAfter(), submit(t, i, r).NotAfter)
	whole := ca.Certificate().NotAfter.Sub(ca.Certificate().NotBefore)
	require.Equal(t, whole, i.Capabilities().MaxValidity, "its whole life, in whole seconds")
	require.Zero(t, whole%time.Second)
}

func TestTheChainThatWasMadeIsTheOneThatAClientFinds(t *testing.T) {
	t.Parallel()
	for name, ca := range map[string]local.CA{"self-made": newCA(t), "from files": caOf(t, newMaterial(t))} {
		i := newIssuer(t, ca)
		r := newRequest(t, certcheck.ECDSAP256)
		s, err := i.Submit(t.Context(), r)
		require.NoError(t, err)
		chain := ca.Chain()
		want := certcheck.Issued{PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), SerialNumber: s.Made.Leaf.SerialNumber, Roots: chain[len(chain)-1:]}
		found, err := certcheck.CheckIssued(slices.Concat(s.CertificatePEM, s.ChainPEM), want)
		require.NoError(t, err, name)
		require.Equal(t, found.CertificatePEM(), s.Made.CertificatePEM(), name)
		require.Equal(t, found.ChainPEM(), s.Made.ChainPEM(), name)
		require.True(t, found.Root.Equal(s.Made.Root), name)

		require.NoError(t, certcheck.CheckMade(*s.Made, want), name)
		other := want
		other.PublicKey = ca.Certificate().PublicKey
		require.ErrorContains(t, certcheck.CheckMade(*s.Made, other), "public key", name)
		other = want
		other.SerialNumber = big.NewInt(7)
		require.ErrorContains(t, certcheck.CheckMade(*s.Made, other), "serial number", name)
	}
}

func TestTheCSRsSignatureIsCheckedUnlessTheCallerHasJustDoneSo(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newCA(t))
	r := newRequest(t, certcheck.ECDSAP256)
	r.CSR.Signature[5] ^= 1
	_, err := i.Submit(t.Context(), r)
	requireReason(t, "CSR_REFUSED", err)
	r.CSRSigned = true
	_, err = i.Submit(t.Context(), r)
	require.NoError(t, err, "it is not looked at twice")
}

func TestSubmitRefuses(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	i := newIssuer(t, ca)
	for reason, change := range map[string]func(*issuer.SubmitRequest){
		"REQUEST_INCOMPLETE":    func(r *issuer.SubmitRequest) { r.OrderID = "" },
		"NAMES_REFUSED":         func(r *issuer.SubmitRequest) { r.Names.DNSNames = []string{"UPPER.example.com"} },
		"CSR_REFUSED":           func(r *issuer.SubmitRequest) { r.CSR.Signature[5] ^= 1 },
		"KEY_USAGE_REFUSED":     func(r *issuer.SubmitRequest) { r.ExtKeyUsages = nil },
		"LIFETIME_INVALID":      func(r *issuer.SubmitRequest) { r.RequestedAt = time.Now().Add(-2 * issuertest.Lifetime) },
		"SERIAL_NUMBER_REFUSED": func(r *issuer.SubmitRequest) { r.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 160) },
		"KEY_REFUSED":           func(r *issuer.SubmitRequest) { r.CSR.PublicKey = nil },
	} {
		r := newRequest(t, certcheck.ECDSAP256)
		change(&r)
		_, err := i.Submit(t.Context(), r)
		requireReason(t, reason, err)
	}
	r := newRequest(t, certcheck.ECDSAP256)
	r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	_, err := i.Submit(t.Context(), r)
	requireReason(t, "KEY_USAGE_REFUSED", err)

	expired, err := local.New(local.Config{CA: ca}, issuer.Deps{Now: func() time.Time { return ca.NotAfter().Add(time.Second) }})
	require.NoError(t, err)
	_, err = expired.Submit(t.Context(), newRequest(t, certcheck.ECDSAP256))
	requireReason(t, "CA_EXPIRED", err)
}

func TestNameConstraintsOfTheCAHold(t *testing.T) {
	t.Parallel()
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	cert := selfSigned(t, key, func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"inside.example"}, true
	})
	ca, err := local.NewCA([]*x509.Certificate{cert}, nil, key, time.Now())
	require.NoError(t, err)
	_, err = newIssuer(t, ca).Submit(t.Context(), newRequest(t, certcheck.ECDSAP256))
	requireReason(t, "CA_CONSTRAINT", err)
}

func TestOnlyOwnCertificatesAreRevoked(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newCA(t))
	foreign := submit(t, newIssuer(t, newCA(t)), newRequest(t, certcheck.ECDSAP256))
	_, err := i.Revoke(t.Context(), issuer.RevokeRequest{Certificate: foreign})
	requireReason(t, "CERTIFICATE_FOREIGN", err)
	_, err = i.Revoke(t.Context(), issuer.RevokeRequest{})
	requireReason(t, "CERTIFICATE_MISSING", err)
}

// TestCertificatesPassZlint lints by RFC 5280 and its relatives, without exceptions. The rules of the CA/Browser Forum,
// browsers and ETSI are for public CAs (CT, registered domains, policy OIDs) and do not apply to a private one.
func TestCertificatesPassZlint(t *testing.T) {
	t.Parallel()
	m := newMaterial(t)
	i, err := local.New(local.Config{
		CA: caOf(t, m), CRLURLs: []string{"http://ca.example.com/crl/iss-local.crl"},
		IssuingCertificateURLs: []string{"http://ca.example.com/ca.crt"},
	}, issuer.Deps{})
	require.NoError(t, err)
	certs := []*x509.Certificate{parse(t, m.RootPEM), parse(t, m.IntermediatePEM)}
	for _, algorithm := range certcheck.KeyAlgorithms() {
		r := newRequest(t, algorithm)
		certs = append(certs, submit(t, i, r))
		r.Names.CommonName = ""
		certs = append(certs, submit(t, i, r))
	}
	registry := privateLints(t)
	for _, c := range certs {
		parsed, err := zx509.ParseCertificate(c.Raw)
		require.NoError(t, err)
		requireLinted(t, zlint.LintCertificateEx(parsed, registry), 20)
	}
}

func TestCRLPassesZlint(t *testing.T) {
	t.Parallel()
	now := time.Now()
	der := signCRL(t, newIssuer(t, newCA(t)), issuer.CRLRequest{
		Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		Entries: entries(t,
			issuer.CRLEntry{SerialNumber: big.NewInt(3), RevokedAt: now, Reason: issuer.CertificateHold},
			issuer.CRLEntry{SerialNumber: big.NewInt(2), RevokedAt: now, Reason: issuer.Unspecified},
		),
	})
	parsed, err := zx509.ParseRevocationList(der)
	require.NoError(t, err)
	requireLinted(t, zlint.LintRevocationListEx(parsed, privateLints(t)), 1)
}

func privateLints(t testing.TB) lint.Registry {
	t.Helper()
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{
		lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6962, lint.RFC8813, lint.Community,
	}})
	require.NoError(t, err)
	return registry
}

// requireLinted wants at least so many lints to have applied, so that an empty registry does not pass.
func requireLinted(t testing.TB, set *zlint.ResultSet, least int) {
	t.Helper()
	ran := 0
	for name, result := range set.Results {
		if result.Status != lint.NA && result.Status != lint.NE {
			ran++
		}
		require.LessOrEqual(t, result.Status, lint.Pass, "%s: %s", name, result.Details)
	}
	require.GreaterOrEqual(t, ran, least)
}

func TestOpenSSLVerifiesTheLeaf(t *testing.T) {
	t.Parallel()
	openssl := lookOpenSSL(t)
	m, dir := newMaterial(t), t.TempDir()
	leaf := submit(t, newIssuer(t, caOf(t, m)), newRequest(t, certcheck.RSA2048))
	write(t, dir, "root.pem", m.RootPEM, 0o644)
	write(t, dir, "intermediate.pem", m.IntermediatePEM, 0o644)
	write(t, dir, "leaf.pem", certcheck.EncodePEM(leaf), 0o644)
	run(t, dir, openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", leaf.DNSNames[0],
		"-CAfile", "root.pem", "-untrusted", "intermediate.pem", "leaf.pem")
}

func TestCRLIsReadByOpenSSLAndStopsRevokedCertificates(t *testing.T) {
	t.Parallel()
	openssl := lookOpenSSL(t)
	m, dir := newMaterial(t), t.TempDir()
	i := newIssuer(t, caOf(t, m))
	good, bad := submit(t, i, newRequest(t, certcheck.ECDSAP256)), submit(t, i, newRequest(t, certcheck.ECDSAP256))
	now := time.Now()
	der := signCRL(t, i, issuer.CRLRequest{
		Number: big.NewInt(9), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
		Entries: entries(t,
			issuer.CRLEntry{SerialNumber: bad.SerialNumber, RevokedAt: now.Add(-time.Minute), Reason: issuer.KeyCompromise},
			issuer.CRLEntry{SerialNumber: big.NewInt(5), RevokedAt: now, Reason: issuer.Unspecified},
			issuer.CRLEntry{SerialNumber: good.SerialNumber, RevokedAt: now, Reason: issuer.RemoveFromCRL},
		),
	})
	write(t, dir, "crl.der", der, 0o644)
	write(t, dir, "ca.pem", append(m.IntermediatePEM, m.RootPEM...), 0o644)
	write(t, dir, "good.pem", certcheck.EncodePEM(good), 0o644)
	write(t, dir, "bad.pem", certcheck.EncodePEM(bad), 0o644)
	text := run(t, dir, openssl, "crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "ca.pem", "-noout", "-text")
	require.Contains(t, text, "verify OK")
	require.Contains(t, text, "Version 2")
	require.Contains(t, text, "Key Compromise")
	require.NotContains(t, text, "Unspecified")
	run(t, dir, openssl, "crl", "-inform", "DER", "-in", "crl.der", "-out", "crl.pem")
	run(t, dir, openssl, "verify", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "ca.pem", "good.pem")
	out, err := command(t, dir, openssl, "verify", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "ca.pem", "bad.pem").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "certificate revoked")

	crl, err := x509.ParseRevocationList(der)
	require.NoError(t, err)
	require.Len(t, crl.RevokedCertificateEntries, 2)
	require.Empty(t, crl.RevokedCertificateEntries[1].Extensions, "unspecified is left out")
}

func TestSignCRLRefuses(t *testing.T) {
	t.Parallel()
	i, now := newIssuer(t, newCA(t)), time.Now()
	for name, change := range map[string]func(*issuer.CRLRequest){
		"no number":       func(r *issuer.CRLRequest) { r.Number = nil },
		"negative number": func(r *issuer.CRLRequest) { r.Number = big.NewInt(-1) },
		"long number":     func(r *issuer.CRLRequest) { r.Number = new(big.Int).Lsh(big.NewInt(1), 159) },
		"no end":          func(r *issuer.CRLRequest) { r.NextUpdate = r.ThisUpdate },
	} {
		r := issuer.CRLRequest{
			Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
			Entries: entries(t, issuer.CRLEntry{SerialNumber: big.NewInt(3), RevokedAt: now}),
		}
		_, err := i.SignCRL(t.Context(), r)
		require.NoError(t, err)
		change(&r)
		_, err = i.SignCRL(t.Context(), r)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), name)
	}
}

func TestEntriesOfCRLsAreRefused(t *testing.T) {
	t.Parallel()
	for name, entry := range map[string]issuer.CRLEntry{
		"unused reason": {SerialNumber: big.NewInt(3), Reason: 7}, "serial zero": {SerialNumber: new(big.Int)}, "no serial": {},
		"long serial": {SerialNumber: new(big.Int).Lsh(big.NewInt(1), 160)},
	} {
		_, err := issuer.NewCRLEntries(entry)
		requireReason(t, "CRL_REFUSED", err)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), name)
	}
}

// TestACRLIsTheSameAsCryptoX509MakesIt compares all but the signature, which is random, with each kind of CA key.
func TestACRLIsTheSameAsCryptoX509MakesIt(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Second)
	late := time.Date(2051, 1, 2, 3, 4, 5, 0, time.UTC)
	var list []issuer.CRLEntry
	var want []x509.RevocationListEntry
	for n := range 1000 {
		serial, err := issuer.NewSerialNumber()
		require.NoError(t, err)
		e := issuer.CRLEntry{SerialNumber: serial, RevokedAt: []time.Time{now, late}[n%2], Reason: []issuer.Reason{issuer.Unspecified, issuer.KeyCompromise, issuer.Superseded}[n%3]}
		list = append(list, e)
		want = append(want, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.RevokedAt, ReasonCode: int(e.Reason)})
	}
	for _, algorithm := range certcheck.KeyAlgorithms() {
		key := issuertest.NewKey(t, algorithm)
		ca := caWithKey(t, key)
		number := big.NewInt(7)
		der := signCRL(t, newIssuer(t, ca), issuer.CRLRequest{Number: number, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Entries: entries(t, list...)})
		reference, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: number, ThisUpdate: now, NextUpdate: now.Add(time.Hour), RevokedCertificateEntries: want,
		}, ca.Certificate(), key)
		require.NoError(t, err, algorithm)
		got, err := x509.ParseRevocationList(der)
		require.NoError(t, err, algorithm)
		expected, err := x509.ParseRevocationList(reference)
		require.NoError(t, err, algorithm)
		require.Equal(t, expected.RawTBSRevocationList, got.RawTBSRevocationList, algorithm)
		require.NoError(t, got.CheckSignatureFrom(ca.Certificate()), algorithm)
	}
}

func TestACRLWithOtherEntriesThanItShouldHaveIsNotSigned(t *testing.T) {
	t.Parallel()
	i, now := newIssuer(t, newCA(t)), time.Now()
	r := issuer.CRLRequest{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	for _, size := range []int64{-1, 1} {
		r.Entries = entries(t, issuer.CRLEntry{SerialNumber: big.NewInt(3), RevokedAt: now})
		r.Entries.Size += size
		_, err := i.SignCRL(t.Context(), r)
		requireReason(t, "CRL_NOT_SIGNED", err)
	}
	r.Entries = issuer.CRLEntries{Size: 1, Write: func(io.Writer) error { return io.ErrUnexpectedEOF }}
	_, err := i.SignCRL(t.Context(), r)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func signCRL(t testing.TB, i *local.Issuer, r issuer.CRLRequest) []byte {
	t.Helper()
	signed, err := i.SignCRL(t.Context(), r)
	require.NoError(t, err)
	return issuertest.DER(t, signed, r.Entries)
}

func entries(t testing.TB, list ...issuer.CRLEntry) issuer.CRLEntries {
	t.Helper()
	e, err := issuer.NewCRLEntries(list...)
	require.NoError(t, err)
	return e
}

func newRequest(t testing.TB, algorithm certcheck.KeyAlgorithm) issuer.SubmitRequest {
	t.Helper()
	n, err := certcheck.ParseNames(certcheck.RawNames{
		CommonName: "www.example.com", DNSNames: []string{"www.example.com", "*.example.com", "bücher.example"},
		IPAddresses: []string{"192.0.2.1", "2001:db8::1"}, EmailAddresses: []string{"ops@example.com"},
		URIs: []string{"spiffe://example.com/web", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"},
	})
	require.NoError(t, err)
	return issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, algorithm), n)
}

func submit(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) *x509.Certificate {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	return parse(t, sub.CertificatePEM)
}

func newMaterial(t testing.TB) local.Material {
	t.Helper()
	m, err := local.Generate(local.Subject{Organization: "Example", Country: "DE"}, time.Now())
	require.NoError(t, err)
	return m
}

func caOf(t testing.TB, m local.Material) local.CA {
	t.Helper()
	ca, err := m.CA(time.Now())
	require.NoError(t, err)
	return ca
}

func newCA(t testing.TB) local.CA {
	t.Helper()
	return caOf(t, newMaterial(t))
}

func newIssuer(t testing.TB, ca local.CA) *local.Issuer {
	t.Helper()
	i, err := local.New(local.Config{CA: ca}, issuer.Deps{})
	require.NoError(t, err)
	return i
}

func caWithKey(t testing.TB, key crypto.Signer) local.CA {
	t.Helper()
	ca, err := local.NewCA([]*x509.Certificate{selfSigned(t, key, nil)}, nil, key, time.Now())
	require.NoError(t, err)
	return ca
}

// selfSigned makes a CA certificate that is right until change spoils it.
func selfSigned(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	return signed(t, key.Public(), nil, key, change)
}

// signed makes a CA certificate below parent; below itself if parent is nil.
func signed(t testing.TB, pub crypto.PublicKey, parent *x509.Certificate, by crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := issuer.NewSerialNumber()
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "CA " + issuer.FormatSerial(serial)[:6]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
	}
	if change != nil {
		change(template)
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func parse(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	certs, err := certcheck.ParseBundle(text)
	require.NoError(t, err)
	return certs[0]
}

func critical(c *x509.Certificate, id ...int) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool {
		return e.Id.Equal(asn1.ObjectIdentifier(id)) && e.Critical
	})
}

func requireReason(t testing.TB, reason string, err error) {
	t.Helper()
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok, "want %s, got %v", reason, err)
	require.Equal(t, reason, p.Reason, err)
}

func write(t testing.TB, dir, name string, text []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, text, mode))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func lookOpenSSL(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	require.NoError(t, err, "the tests need the openssl command (Debian: openssl)")
	return path
}

func command(t testing.TB, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	return c
}

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, name, args...).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// backdate is how far before its request a certificate begins, for clients whose clock is slow.
const backdate = time.Minute

var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}

// sign makes the certificate of a request. What CA certificates forbid is found as a client would find it.
func (i *Issuer) sign(r issuer.SubmitRequest) (*x509.Certificate, error) {
	template, err := i.template(r)
	if err != nil {
		return nil, err
	}
	// Without a source of randomness ECDSA signatures are those of RFC 6979: the same certificate has the same bytes. It checks the
	// signature that it has made.
	der, err := x509.CreateCertificate(nil, template, i.ca.certificate, r.CSR.PublicKey, i.ca.signer)
	if err != nil {
		return nil, refuse("CERTIFICATE_NOT_SIGNED", "the certificate cannot be made", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, refuse("CERTIFICATE_NOT_SIGNED", "the certificate cannot be read again", err)
	}
	if !i.constrained {
		return leaf, nil
	}
	return leaf, i.verify(leaf)
}

// constrained tells whether a certificate of the chain constrains names (RFC 5280, section 4.2.1.10). It is all that the chain
// can hold against a certificate that is made here: its time is within theirs (validity), CA and path length were checked
// when the CA was loaded, and the signature when it was made.
func (c CA) constrained() bool {
	return slices.ContainsFunc(c.Chain(), func(cert *x509.Certificate) bool {
		return slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNameConstraints) })
	})
}

// verify finds names outside of the name constraints of the CA certificates.
func (i *Issuer) verify(leaf *x509.Certificate) error {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.ca.root())
	for _, c := range i.ca.intermediates() {
		others.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: others, CurrentTime: leaf.NotAfter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return refuse("CA_CONSTRAINT", "the CA's own certificate does not allow this certificate", err)
	}
	return nil
}

func (i *Issuer) template(r issuer.SubmitRequest) (*x509.Certificate, error) {
	names, err := checkRequest(r)
	if err != nil {
		return nil, err
	}
	usage, err := keyUsage(r.CSR.PublicKey, r.KeyUsage, r.ExtKeyUsages)
	if err != nil {
		return nil, err
	}
	notBefore, notAfter, err := i.validity(r)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber(r.SerialNumber)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              usage,
		ExtKeyUsage:           r.ExtKeyUsages,
		BasicConstraintsValid: true, // critical, CA:FALSE
		CRLDistributionPoints: i.config.CRLURLs,
		IssuingCertificateURL: i.config.IssuingCertificateURLs,
	}
	if t.SubjectKeyId, err = subjectKeyID(r.CSR.PublicKey); err != nil {
		return nil, err
	}
	return t, setNames(t, names)
}

// checkRequest makes sure that only what certcheck would let pass is signed, whoever calls.
func checkRequest(r issuer.SubmitRequest) (certcheck.Names, error) {
	if r.OrderID == "" || r.CSR == nil {
		return certcheck.Names{}, issuer.Permanent("REQUEST_INCOMPLETE", "an order needs an id and a CSR")
	}
	if _, err := certcheck.CheckKey(r.CSR.PublicKey); err != nil {
		return certcheck.Names{}, refuse("KEY_REFUSED", "the key of the CSR is refused", err)
	}
	if !r.CSRSigned {
		if err := r.CSR.CheckSignature(); err != nil {
			return certcheck.Names{}, refuse("CSR_REFUSED", "the CSR is not signed by its key", err)
		}
	}
	names, err := certcheck.ParseNames(r.Names.Raw())
	if err != nil {
		return certcheck.Names{}, refuse("NAMES_REFUSED", "the names are refused", err)
	}
	if !sameNames(names, r.Names) {
		return certcheck.Names{}, issuer.Permanent("NAMES_REFUSED", "the names are not in canonical form")
	}
	return names, nil
}

func sameNames(a, b certcheck.Names) bool {
	return a.CommonName == b.CommonName && slices.Equal(a.DNSNames, b.DNSNames) && slices.Equal(a.URIs, b.URIs) &&
		slices.Equal(a.EmailAddresses, b.EmailAddresses) && slices.Equal(a.IPAddresses, b.IPAddresses)
}

// validity gives begin and end. The end is never after that of any certificate above (RFC 5280, section 6.1.3: a path
// is valid only while all of it is), and both are whole seconds, as certificates hold nothing finer.
func (i *Issuer) validity(r issuer.SubmitRequest) (notBefore, notAfter time.Time, err error) {
	from := r.RequestedAt
	if from.IsZero() {
		from = i.now()
	}
	from = from.UTC().Truncate(time.Second)
	if r.Lifetime <= 0 {
		return notBefore, notAfter, issuer.Permanent("LIFETIME_INVALID", "a certificate needs a lifetime")
	}
	notAfter = earliest(from.Add(r.Lifetime), r.NotAfter, i.ca.NotAfter()).UTC().Truncate(time.Second)
	notBefore = from.Add(-backdate)
	if begin := i.ca.notBefore(); notBefore.Before(begin) {
		notBefore = begin
	}
	switch {
	case !i.ca.NotAfter().After(i.now()):
		return notBefore, notAfter, issuer.Misconfigured("CA_EXPIRED", "the CA's own certificate has expired")
	case !notAfter.After(notBefore) || !notAfter.After(i.now()):
		return notBefore, notAfter, issuer.Permanent("LIFETIME_INVALID",
			"the certificate would have ended already at %s: place a new order", notAfter.Format(time.RFC3339))
	}
	return notBefore, notAfter, nil
}

// earliest gives the first of some times; zero ones do not count.
func earliest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if !o.IsZero() && o.Before(t) {
			t = o
		}
	}
	return t
}

// keyUsage takes the profile's usages, or those that fit the key. What a key of its type cannot do is left out (RFC
// 3279, section 2.3; RFC 8813, section 3; RFC 9295, section 3).
func keyUsage(pub crypto.PublicKey, want x509.KeyUsage, ekus []x509.ExtKeyUsage) (x509.KeyUsage, error) {
	if len(ekus) == 0 {
		return 0, issuer.Permanent("KEY_USAGE_REFUSED", "a certificate needs an extended key usage: without any it would be good for all")
	}
	if slices.Contains(ekus, x509.ExtKeyUsageOCSPSigning) {
		return 0, issuer.Permanent("KEY_USAGE_REFUSED", "OCSPSigning would let the certificate answer for the CA")
	}
	if want&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return 0, issuer.Permanent("KEY_USAGE_REFUSED", "keyCertSign and cRLSign are for CAs")
	}
	if want == 0 {
		want = x509.KeyUsageDigitalSignature
		if slices.Contains(ekus, x509.ExtKeyUsageServerAuth) {
			want |= x509.KeyUsageKeyEncipherment // left out again for keys that cannot
		}
	}
	usage := want & possibleUsages(pub)
	if usage == 0 {
		return 0, issuer.Permanent("KEY_USAGE_REFUSED", "the key cannot do any of the wanted key usages")
	}
	return usage, nil
}

func possibleUsages(pub crypto.PublicKey) x509.KeyUsage {
	const sign = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	switch pub.(type) {
	case *rsa.PublicKey:
		return sign | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	case *ecdsa.PublicKey:
		return sign | x509.KeyUsageKeyAgreement
	default:
		return sign
	}
}

func serialNumber(given *big.Int) (*big.Int, error) {
	if given == nil {
		return issuer.NewSerialNumber()
	}
	if err := issuer.CheckSerial(given); err != nil {
		return nil, refuse("SERIAL_NUMBER_REFUSED", "the serial number is refused", err)
	}
	return given, nil
}

// subjectKeyID is method 1 of RFC 7093, section 2: the first 160 bits of the SHA-256 of the key's bit string.
func subjectKeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, refuse("KEY_REFUSED", "the key cannot be encoded", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, refuse("KEY_REFUSED", "the key cannot be encoded", err)
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// setNames sets subject and alternative names. With an empty subject, x509 marks the names critical (RFC 5280, section
// 4.2.1.6).
func setNames(t *x509.Certificate, n certcheck.Names) error {
	urls, err := n.URLs()
	if err != nil {
		return refuse("NAMES_REFUSED", "the names are refused", err)
	}
	t.Subject = pkix.Name{CommonName: n.CommonName}
	t.DNSNames, t.EmailAddresses, t.URIs = n.DNSNames, n.EmailAddresses, urls
	for _, ip := range n.IPAddresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	return nil
}

func refuse(reason, message string, cause error) error {
	return &issuer.PermanentError{Fault: issuer.FaultRequest, Reason: reason, Message: message, Cause: cause}
}

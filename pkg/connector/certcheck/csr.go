package certcheck

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/certctl/certctl/pkg/errs"
)

// MaxCSR is the most that is read of a certificate signing request, in bytes.
const MaxCSR = 64 << 10

// csrField is the field that violations of CheckCSR name.
const csrField = "csr"

// Want is what a certificate signing request has to be.
type Want struct {
	Names         Names
	KeyAlgorithms []KeyAlgorithm // empty: all that CheckKey knows
}

// CheckCSR reads a PKCS #10 request (RFC 2986), PEM or DER, and holds it against what is wanted: it asks for
// exactly the wanted alternative names, its subject names nothing else, its key is allowed, and its signature
// shows possession of the key. The error is an errs.Invalid with all violations, all of field "csr".
func CheckCSR(raw []byte, want Want) (*x509.CertificateRequest, error) {
	csr, err := ParseCSR(raw)
	if err != nil {
		return nil, err
	}
	var v errs.Violations
	for _, err := range []error{
		checkCSRKey(csr, want.KeyAlgorithms),
		checkCSRSignature(csr),
		checkCSRSubject(csr, want.Names),
		checkCSRConstraints(csr),
	} {
		if err != nil {
			v.Add(csrField, "%s", err.Error())
		}
	}
	checkCSRNames(&v, csr, want.Names)
	if err := v.Err(); err != nil {
		return nil, err
	}
	return csr, nil
}

// ParseCSR reads one PKCS #10 request, PEM or DER, with nothing before or after it. It does not judge it.
func ParseCSR(raw []byte) (*x509.CertificateRequest, error) {
	if len(raw) > MaxCSR {
		return nil, errs.Field(csrField, "has %d bytes: the most is %d", len(raw), MaxCSR)
	}
	der, err := csrDER(raw)
	if err != nil {
		return nil, errs.Field(csrField, "%s", err.Error())
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errs.Field(csrField, "is no certificate signing request (PKCS #10)").Wrap(err)
	}
	return csr, nil
}

// csrDER takes off the PEM armour, if there is one.
func csrDER(raw []byte) ([]byte, error) {
	trimmed := bytes.TrimSpace(raw)
	if !bytes.HasPrefix(trimmed, []byte("-----BEGIN ")) {
		if len(raw) == 0 {
			return nil, errors.New("is empty")
		}
		return raw, nil
	}
	block, rest := pem.Decode(trimmed)
	switch {
	case block == nil:
		return nil, errors.New("is broken PEM")
	case block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST":
		return nil, fmt.Errorf("is a PEM block of type %q, not of a certificate signing request", clip(block.Type))
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("has something after the request")
	}
	return block.Bytes, nil
}

func checkCSRKey(csr *x509.CertificateRequest, list []KeyAlgorithm) error {
	algorithm, err := CheckKey(csr.PublicKey)
	if err != nil {
		return err
	}
	return allowed(algorithm, list)
}

// checkCSRSignature refuses MD5 and SHA-1 before asking x509, which still takes SHA-1 for requests.
func checkCSRSignature(csr *x509.CertificateRequest) error {
	good := []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
	}
	if !slices.Contains(good, csr.SignatureAlgorithm) {
		return fmt.Errorf("is signed with %s, which is not accepted", csr.SignatureAlgorithm)
	}
	if csr.CheckSignature() != nil {
		return errors.New("its signature is not that of its key")
	}
	return nil
}

// checkCSRSubject refuses common names and mail addresses in the subject that are not among the wanted names: a
// CA might honour them.
func checkCSRSubject(csr *x509.CertificateRequest, want Names) error {
	seen := subjectNames(csr.Subject)
	if len(seen) > 1 {
		return fmt.Errorf("its subject names %d things: one common name is the most", len(seen))
	}
	for _, s := range seen {
		if _, ok := want.canonicalCommonName(s); !ok {
			return fmt.Errorf("its subject names %q, which is not one of the certificate's names", clip(s))
		}
	}
	return nil
}

// checkCSRConstraints refuses a request to become a CA. Other requested extensions are never copied by certctl
// and harmless.
func checkCSRConstraints(csr *x509.CertificateRequest) error {
	der, err := extension(csr.Extensions, oidBasicConstraints)
	if err != nil || der == nil {
		return err
	}
	var bc struct {
		IsCA       bool `asn1:"optional"`
		MaxPathLen int  `asn1:"optional,default:-1"`
	}
	if rest, err := asn1.Unmarshal(der, &bc); err != nil || len(rest) > 0 {
		return errors.New("its basic constraints are not encoded as RFC 5280 says")
	}
	if bc.IsCA {
		return errors.New("asks to become a CA")
	}
	return nil
}

func checkCSRNames(v *errs.Violations, csr *x509.CertificateRequest, want Names) {
	got, err := parseSANs(csr.Extensions)
	if err != nil {
		v.Add(csrField, "%s", err.Error())
		return
	}
	extra, missing := got.compare(want.sans())
	for _, s := range extra {
		v.Add(csrField, "asks for %s, which is not one of the certificate's names", s)
	}
	for _, s := range missing {
		v.Add(csrField, "does not ask for %s, which is one of the certificate's names", s)
	}
}

// Package local is a CA that runs inside of certctl. It signs with a self-made root and intermediate (Generate) or as
// a subordinate CA from files (LoadFiles). It answers at once and keeps no record.
//
// What makes Submit repeatable is in the request: with the same SerialNumber and RequestedAt, which the caller stores
// as intent beforehand, the same order gives the same certificate, byte for byte. A certificate whose reply was lost
// never left this process, so the order may simply be submitted again; FindOrder says so.
//
// Revocation is a line in the caller's record and in the CRL that SignCRL makes of it.
package local

import (
	"bytes"
	"context"
	"crypto/x509"
	"net/url"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// TypeName is the name of the type in the API.
const TypeName = "local"

// refSerial is the entry of a Ref that holds the serial number.
const refSerial = "serial_number"

// Config of a local issuer.
type Config struct {
	CA CA
	// CRLURLs and IssuingCertificateURLs go into each certificate (RFC 5280, sections 4.2.1.13 and 4.2.2.1).
	CRLURLs                []string
	IssuingCertificateURLs []string
}

// Issuer signs certificates and CRLs. It is safe for concurrent use.
type Issuer struct {
	ca     CA
	config Config
	now    func() time.Time
	// chainPEM and constrained are of the CA's chain, which stays the same.
	chainPEM    []byte
	constrained bool
}

var (
	_ issuer.Issuer        = (*Issuer)(nil)
	_ issuer.Revoker       = (*Issuer)(nil)
	_ issuer.Finder        = (*Issuer)(nil)
	_ issuer.CRLSigner     = (*Issuer)(nil)
	_ issuer.ChainProvider = (*Issuer)(nil)
	_ issuer.Describer     = (*Issuer)(nil)
)

// New makes an issuer of a checked CA.
func New(c Config, d issuer.Deps) (*Issuer, error) {
	if c.CA.signer == nil {
		return nil, issuer.Misconfigured("CA_MATERIAL_MISSING", "the local CA has neither generated keys nor files")
	}
	for _, u := range append(append([]string{}, c.CRLURLs...), c.IssuingCertificateURLs...) {
		if !httpURL(u) {
			return nil, issuer.Misconfigured("CA_URL_INVALID", "%q is no absolute http or https URL", u)
		}
	}
	return &Issuer{
		ca: c.CA, config: c, now: d.Clock(), chainPEM: certcheck.EncodePEM(c.CA.intermediates()...), constrained: c.CA.constrained(),
	}, nil
}

// Submit signs at once. Errors are permanent, or say that nothing was done.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, err
	}
	leaf, err := i.sign(r)
	if err != nil {
		return issuer.Submission{}, err
	}
	made := certcheck.Chain{Leaf: leaf, Intermediates: i.ca.intermediates(), Root: i.ca.root()}
	return issuer.Submission{
		State:          issuer.Issued,
		Ref:            issuer.Ref{refSerial: issuer.FormatSerial(leaf.SerialNumber)},
		CertificatePEM: made.CertificatePEM(),
		ChainPEM:       i.chainPEM,
		Made:           &made,
	}, nil
}

// Poll has nothing to ask: no order is ever pending here.
func (i *Issuer) Poll(context.Context, issuer.Ref) (issuer.Submission, error) {
	return issuer.Submission{}, issuer.Permanent(issuer.ReasonOrderNotFound, "the local CA answers at once and keeps no orders")
}

// FindOrder never finds one: what Submit did not hand over does not exist.
func (i *Issuer) FindOrder(ctx context.Context, _ issuer.FindRequest) (issuer.Submission, bool, error) {
	return issuer.Submission{}, false, issuer.NotSent(ctx)
}

// Revoke makes sure that the certificate is one of this CA's and the reason one that a CRL can carry. The revocation
// itself takes effect with the next CRL.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	switch {
	case !r.Reason.Valid():
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "nothing can be revoked for %s", r.Reason)
	case r.Certificate == nil:
		return issuer.Revocation{}, issuer.Permanent("CERTIFICATE_MISSING", "revocation needs the certificate")
	case !bytes.Equal(r.Certificate.RawIssuer, i.ca.certificate.RawSubject) || r.Certificate.CheckSignatureFrom(i.ca.certificate) != nil:
		return issuer.Revocation{}, issuer.Permanent("CERTIFICATE_FOREIGN", "the certificate was not issued by %q", i.ca.certificate.Subject)
	}
	return issuer.Revocation{State: issuer.Revoked}, nil
}

// Chain gives the issuing certificate, those above it, and the root.
func (i *Issuer) Chain(context.Context) ([]*x509.Certificate, error) { return i.ca.Chain(), nil }

// Capabilities are those of the type. MaxValidity is the whole life of the issuing certificate, so that it stays the same
// from one look to the next; what is left of it bounds each certificate by itself.
func (i *Issuer) Capabilities() issuer.Capabilities {
	c := capabilities()
	c.MaxValidity = i.ca.certificate.NotAfter.Sub(i.ca.certificate.NotBefore)
	return c
}

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{Revocation: true, CRL: true, Find: true, SerialNumber: true}
}

func httpURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && len(s) < 1024
}

// Package issuer says what certctl asks of a certificate authority. A connector is a type that implements Issuer and,
// where its CA can do more, some of the optional interfaces, which callers find by assertion:
//
//	Issuer           asks for a certificate and fetches it
//	Revoker          tells the CA that a certificate is revoked
//	Finder           finds an order whose reply was lost
//	CRLSigner        signs a CRL over entries that the caller keeps
//	RenewalInformer  tells when the CA wants a certificate renewed (RFC 9773)
//	ChainProvider    gives the certificates above the leaf before anything is issued
//
// Connectors keep no record of orders: the caller stores the intent before Submit and the answer after it. They start
// nothing in the background, hold no global state, and bound every byte that they read.
package issuer

import (
	"context"
	"crypto/x509"
	"math/big"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
)

// Issuer asks a CA for certificates. Implementations are safe for concurrent use. Errors are one of *PermanentError,
// *RetryError and *UnknownOutcomeError; see OutcomeOf for how others are taken.
type Issuer interface {
	// Submit places an order. The same OrderID with otherwise the same request leads to the same order, never to a
	// second certificate, where the CA has a key for that or the request carries what fixes the result
	// (SerialNumber, RequestedAt). Where the CA has neither, Submit may be repeated only when the error before said
	// that nothing was placed, and an unknown outcome is reconciled by Finder first.
	Submit(ctx context.Context, r SubmitRequest) (Submission, error)

	// Poll asks once how an order is. It is one cheap call and never waits for the order to move.
	Poll(ctx context.Context, ref Ref) (Submission, error)
}

// Revoker tells the CA that a certificate is revoked. A certificate that is revoked already is a success.
type Revoker interface {
	Revoke(ctx context.Context, r RevokeRequest) error
}

// Finder looks for an order at the CA when the reply to Submit was lost. ok is false when the CA has no such order,
// so that it may be submitted (again); an error means that this could not be told.
type Finder interface {
	FindOrder(ctx context.Context, r FindRequest) (found Submission, ok bool, err error)
}

// CRLSigner signs a certificate revocation list (RFC 5280, section 5) and gives it as DER.
type CRLSigner interface {
	SignCRL(ctx context.Context, r CRLRequest) ([]byte, error)
}

// RenewalInformer tells when the CA wants a certificate renewed (RFC 9773).
type RenewalInformer interface {
	RenewalInfo(ctx context.Context, leaf *x509.Certificate) (Window, error)
}

// ChainProvider gives the CA's own certificates: the issuing one first, the root last if it is known. It is for
// publishing them and for CheckIssued's trust anchors.
type ChainProvider interface {
	Chain(ctx context.Context) ([]*x509.Certificate, error)
}

// Describer tells what this one issuer can do, where that is less than what its type can (Type.Capabilities), such as
// a MaxValidity that depends on its own certificate.
type Describer interface {
	Capabilities() Capabilities
}

// SubmitRequest is a certificate to be issued. Names, lifetime and usages are the caller's decision; of the CSR only
// the key counts, and whoever calls has run certcheck.CheckCSR on it.
type SubmitRequest struct {
	// OrderID is the caller's name for the order and the idempotency key.
	OrderID string
	CSR     *x509.CertificateRequest
	// Names are the subject common name and the subject alternative names; exactly these are certified.
	Names certcheck.Names
	// Lifetime is the wanted validity from RequestedAt on. Connectors shorten it to what the CA can do and never
	// lengthen it.
	Lifetime time.Duration
	// NotAfter is the latest allowed end, if it is set.
	NotAfter time.Time
	// RequestedAt is when the intent was stored, and stays the same when the order is submitted again. Zero: now.
	RequestedAt time.Time
	// KeyUsage is the profile's; zero leaves it to the connector, which goes by the type of the key.
	KeyUsage     x509.KeyUsage
	ExtKeyUsages []x509.ExtKeyUsage
	// SerialNumber is for CAs that let it be chosen (Capabilities.SerialNumber), so that it can be stored as intent.
	SerialNumber *big.Int
	// Previous is the reference of the order that this one renews, and PreviousCertificate its leaf; nil if none.
	Previous            Ref
	PreviousCertificate *x509.Certificate
}

// Ref is how the CA calls an order and its certificate (order id, certificate id, ARN, URL). It is opaque to callers,
// who store it as JSON and hand it back. It holds no secrets.
type Ref map[string]string

// State of an order at the CA.
type State string

// The states of an order at the CA.
const (
	Pending  State = "PENDING"  // poll again
	Issued   State = "ISSUED"   // CertificatePEM and ChainPEM are there
	Rejected State = "REJECTED" // final, Detail says why
)

// Submission is how an order is.
type Submission struct {
	State State
	// Ref is set in every state. It may gain entries from one answer to the next: store the newest.
	Ref Ref
	// CertificatePEM and ChainPEM are as the CA sent them; certcheck.CheckIssued sorts and judges them. ChainPEM may
	// be empty, and holds no root where the connector can tell.
	CertificatePEM []byte
	ChainPEM       []byte
	// RetryAfter is the CA's wish for the next poll; zero if it has none.
	RetryAfter time.Duration
	// Detail is for people: what the CA waits for or why it said no.
	Detail string
}

// RevokeRequest names the certificate to revoke in each way that some CA needs.
type RevokeRequest struct {
	Ref         Ref
	Certificate *x509.Certificate
	Reason      Reason
	RevokedAt   time.Time
}

// FindRequest describes an order whose reply was lost.
type FindRequest struct {
	OrderID      string
	CSRSHA256    [32]byte // of the CSR's DER
	Names        certcheck.Names
	SerialNumber *big.Int  // nil if the CA chooses it
	Since        time.Time // when the order was submitted for the first time
}

// CRLRequest is the content of a CRL.
type CRLRequest struct {
	Number     *big.Int // grows with each CRL of the issuer; at most 20 octets
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    []CRLEntry
}

// CRLEntry is one revoked certificate.
type CRLEntry struct {
	SerialNumber *big.Int
	RevokedAt    time.Time
	Reason       Reason
}

// Window is when the CA wants a certificate renewed.
type Window struct {
	Start          time.Time
	End            time.Time
	ExplanationURL string
	RetryAfter     time.Duration // when to ask again
}

// Capabilities is what a connector can do, so that what it cannot do is refused up front.
type Capabilities struct {
	Async        bool          `json:"async"`         // Submit may answer PENDING
	Revocation   bool          `json:"revocation"`    // implements Revoker
	CRL          bool          `json:"crl"`           // implements CRLSigner
	OCSP         bool          `json:"ocsp"`          // the CA answers OCSP
	ARI          bool          `json:"ari"`           // implements RenewalInformer
	Find         bool          `json:"find"`          // implements Finder
	SerialNumber bool          `json:"serial_number"` // honours SubmitRequest.SerialNumber
	MaxValidity  time.Duration `json:"-"`             // zero: no bound that is known beforehand
}

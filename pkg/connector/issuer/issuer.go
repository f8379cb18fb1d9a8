// Package issuer says what certctl asks of a certificate authority. A connector is a type that implements Issuer and,
// where its CA can do more, some of the optional interfaces, which callers find by assertion:
//
//	Issuer           asks for a certificate and fetches it
//	Revoker          tells the CA that a certificate is revoked
//	Finder           finds an order whose reply was lost
//	Lister           lists what the CA has, for comparing it with the journal
//	Canceller        gives up an order that is pending at the CA
//	Tester           tells whether settings and credentials work
//	Metered          shows the guard of the CA account that calls go through
//	CRLSigner        signs a CRL over entries that the caller keeps
//	RenewalInformer  tells when the CA wants a certificate renewed (RFC 9773)
//	ChainProvider    gives the certificates above the leaf before anything is issued
//
// Connectors keep no record of orders: the caller stores the intent before Submit and the answer after it. They start
// nothing in the background, hold no global state, and bound every byte that they read.
package issuer

import (
	"context"
	"crypto"
	"crypto/x509"
	"math/big"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
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

// Revoker tells the CA that a certificate is revoked. A certificate that is revoked already is a success. It may be
// repeated: where a human at the CA has to approve, the answer is AwaitingApproval, and the same call, with
// RevokeRequest.Request set to what was answered, tells later how that went and asks for nothing twice.
type Revoker interface {
	Revoke(ctx context.Context, r RevokeRequest) (Revocation, error)
}

// Finder looks for an order at the CA when the reply to Submit was lost. ok is false when the CA has no such order,
// so that it may be submitted (again); an error means that this could not be told. A CA that shows an order only some
// time after it took it is such a case: until that time is over (FindRequest.LastSubmitted), the answer is a RetryError.
type Finder interface {
	FindOrder(ctx context.Context, r FindRequest) (found Submission, ok bool, err error)
}

// Lister lists the orders that a CA has, whoever placed them, so that those which the journal does not know are seen.
type Lister interface {
	ListOrders(ctx context.Context, r ListRequest) (Listing, error)
	// OrderKey gives the ListedOrder.Key of an order by a reference that Submit, Poll or FindOrder gave; empty when the
	// reference does not hold it yet. Orders that are re-issued under one order of the CA have one key.
	OrderKey(ref Ref) string
}

// Canceller gives up an order that is pending at the CA. One that the CA has ended already is a success.
type Canceller interface {
	Cancel(ctx context.Context, ref Ref) error
}

// Tester asks the CA something that costs nothing and changes nothing: whether it is there, whether it takes the
// credentials, whether it has what the settings name (organisation, product, profile). Wrong settings are a
// PermanentError with FaultConfiguration and the Field that is at fault.
type Tester interface {
	Test(ctx context.Context) error
}

// Metered shows the guard that all calls of this issuer go through, for those who plan calls.
type Metered interface {
	Account() *account.Guard
}

// CRLSigner signs a certificate revocation list (RFC 5280, section 5).
type CRLSigner interface {
	SignCRL(ctx context.Context, r CRLRequest) (SignedCRL, error)
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
	// CSRSigned says that the caller has checked the CSR's own signature just now, with the CSR in memory since.
	CSRSigned bool
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
	// Made is the same chain, read and in order, from a connector that has signed the certificate itself, in this process, and
	// has checked its signature; nil from all that have it from elsewhere. certcheck.CheckMade judges it.
	Made *certcheck.Chain
	// RetryAfter is the CA's wish for the next poll; zero if it has none.
	RetryAfter time.Duration
	// Detail is for people: what the CA waits for or why it said no.
	Detail string
}

// RevokeRequest names the certificate to revoke in each way that some CA needs.
type RevokeRequest struct {
	Ref         Ref // of the order
	Certificate *x509.Certificate
	Reason      Reason
	RevokedAt   time.Time
	// Request is Revocation.Request of the answer before; nil with the first call.
	Request Ref
}

// RevocationState is how a revocation is at the CA.
type RevocationState string

// The states of a revocation at the CA.
const (
	Revoked          RevocationState = "REVOKED"
	AwaitingApproval RevocationState = "AWAITING_APPROVAL" // nothing is revoked until a human at the CA says so
)

// Revocation is how a revocation is. One that a human refused is a PermanentError.
type Revocation struct {
	State RevocationState
	// Request is how the CA calls the request for approval.
	Request Ref
	Detail  string // for people
	// RetryAfter is the CA's wish for the next question; zero if it has none.
	RetryAfter time.Duration
}

// FindRequest describes an order whose reply was lost.
type FindRequest struct {
	OrderID      string
	CSRSHA256    [32]byte // of the CSR's DER
	Names        certcheck.Names
	SerialNumber *big.Int  // nil if the CA chooses it
	Since        time.Time // when the order was submitted for the first time
	// LastSubmitted is when the order was submitted for the last time, which is what a CA that shows orders late has to be
	// given time from; zero: Since.
	LastSubmitted time.Time
	// PublicKey is that of the CSR, for CAs that show certificates and no CSRs.
	PublicKey crypto.PublicKey
	// Ref is what is known of the order (UnknownOutcomeError.Ref), nil if nothing.
	Ref Ref
	// Previous is the reference of the order that this one renews, as in SubmitRequest: where a renewal is a re-issue,
	// it is to be found under the old order.
	Previous Ref
}

// ListRequest is one page of what a CA has.
type ListRequest struct {
	Since time.Time // orders placed then or later
	Page  string    // Listing.Next of the page before; empty: the first
}

// Listing is one page of a CA's orders.
type Listing struct {
	Orders []ListedOrder
	Next   string // empty: this was the last page
}

// ListedOrder is an order as the CA lists it.
type ListedOrder struct {
	// Key is what tells this order from all others of the CA account; it never changes.
	Key string
	// Ref is a reference that Poll takes.
	Ref Ref
	// OrderID is SubmitRequest.OrderID, where the CA shows what the order was placed with; empty if it does not.
	OrderID      string
	State        State
	CommonName   string
	DNSNames     []string
	SerialNumber string    // lower-case hex; empty if there is none yet
	PlacedAt     time.Time // zero if the CA does not say
	Detail       string    // for people: the CA's own word for its state, who asked for it
}

// CRLRequest is the content of a CRL.
type CRLRequest struct {
	Number     *big.Int // grows with each CRL of the issuer; at most 20 octets
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    CRLEntries
}

// SignedCRL is what stands around the entries of a CRL: Head, the entries and Tail are its DER.
type SignedCRL struct{ Head, Tail []byte }

// Window is when the CA wants a certificate renewed.
type Window struct {
	Start          time.Time
	End            time.Time
	ExplanationURL string
	RetryAfter     time.Duration // when to ask again
}

// Capabilities is what a connector can do, so that what it cannot do is refused up front.
type Capabilities struct {
	Async        bool `json:"async"`         // Submit may answer PENDING
	Revocation   bool `json:"revocation"`    // implements Revoker
	CRL          bool `json:"crl"`           // implements CRLSigner
	OCSP         bool `json:"ocsp"`          // the CA answers OCSP
	ARI          bool `json:"ari"`           // implements RenewalInformer
	Find         bool `json:"find"`          // implements Finder
	List         bool `json:"list"`          // implements Lister
	Cancel       bool `json:"cancel"`        // implements Canceller
	Reissue      bool `json:"reissue"`       // uses SubmitRequest.Previous: a renewal is a re-issue or renewal at the CA
	SerialNumber bool `json:"serial_number"` // honours SubmitRequest.SerialNumber
	// Reasons are those that the CA can be told; empty: all. Another one is refused when a revocation is asked for.
	Reasons []Reason `json:"-"`
	// PendingDeadline is how long an order may be pending before it has failed, where the issuer does not say; zero: 30 days.
	PendingDeadline time.Duration `json:"-"`
	MaxValidity     time.Duration `json:"-"` // zero: no bound that is known beforehand
}

package casimulator

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"time"
)

// State is how far an order, or a request for a certificate, has come. Each CA has its own words for it.
type State string

// The states.
const (
	Waiting    State = "waiting"    // for a human at the CA
	Processing State = "processing" // approved, and not issued yet
	Issued     State = "issued"
	Rejected   State = "rejected"
	Cancelled  State = "cancelled"
)

// Order is the truth about an order, for holding it against what a client believes.
type Order struct {
	CA string `json:"ca"`
	ID string `json:"id"`
	// Reference is the client's own name for the order, as it arrived.
	Reference string `json:"reference,omitempty"`
	// CSRSHA256 is of the DER of the first certificate's CSR, or of its public key where the CA takes only that.
	CSRSHA256  string    `json:"csr_sha256"`
	CommonName string    `json:"common_name"`
	DNSNames   []string  `json:"dns_names,omitempty"`
	State      State     `json:"state"`
	Accepted   time.Time `json:"accepted"`
	// Billed is how many certificates the customer pays for. Re-issues are free.
	Billed int `json:"billed"`
	// Certificates is how many were issued, and Serials their serial numbers, upper-case hexadecimal.
	Certificates int      `json:"certificates"`
	Serials      []string `json:"serials,omitempty"`
	Revoked      []string `json:"revoked,omitempty"`
	// Forgotten says that the CA denies the order.
	Forgotten bool `json:"forgotten,omitempty"`
	// Requests are the certificates that were asked for under this order, the first one first.
	Requests []Certificate `json:"requests"`
}

// Certificate is the truth about one that was asked for.
type Certificate struct {
	ID string `json:"id"`
	// Kind is new, or the API's own word for another certificate of the same order: reissue, duplicate, replace.
	Kind string `json:"kind"`
	// Reference is the client's own name, where the API has a place for one here.
	Reference string `json:"reference,omitempty"`
	CSRSHA256 string `json:"csr_sha256"`
	State     State  `json:"state"`
	Serial    string `json:"serial,omitempty"` // of an issued one
	Revoked   bool   `json:"revoked,omitempty"`
}

// order is what the store keeps. A published one is never changed.
type order struct {
	CA        string    `json:"ca"`
	ID        string    `json:"id"`
	Reference string    `json:"reference,omitempty"`
	Product   string    `json:"product,omitempty"`
	Accepted  time.Time `json:"accepted"`
	Billed    int       `json:"billed"`
	Forgotten bool      `json:"forgotten,omitempty"`
	// Attributes are what else the API of the CA says of the order. The map is never changed, only replaced.
	Attributes map[string]string `json:"attributes,omitempty"`
	// Requests are the certificates: the first, and re-issues and duplicates after it.
	Requests []request `json:"requests"`
	// Actions wait, or waited, for a human, such as revocations.
	Actions []action `json:"actions,omitempty"`
}

// request is a certificate that was asked for.
type request struct {
	ID string `json:"id"`
	// Kind is new, or the API's own word for another certificate of the same order.
	Kind string `json:"kind"`
	// CSR is DER. PublicKey, DER as well, is set where a client gave only that.
	CSR       []byte `json:"csr,omitempty"`
	PublicKey []byte `json:"public_key,omitempty"`

	CommonName   string   `json:"common_name,omitempty"`
	Organization string   `json:"organization,omitempty"`
	DNSNames     []string `json:"dns_names,omitempty"`
	IPAddresses  []string `json:"ip_addresses,omitempty"`
	Emails       []string `json:"emails,omitempty"`
	URIs         []string `json:"uris,omitempty"`
	// ExtKeyUsages are object identifiers; none is server authentication.
	ExtKeyUsages []string `json:"ext_key_usages,omitempty"`

	Accepted time.Time `json:"accepted"`
	Gate     gate      `json:"gate"`
	// Latency is from the acceptance, or the approval, to the certificate.
	Latency time.Duration `json:"latency,omitempty"`
	// Days is the validity, unless NotAfter is set. NotBefore is the time of issuance, unless it is set. WholeDays lets
	// a certificate begin at midnight UTC of the day of its issuance, as some CAs do.
	Days      int       `json:"days,omitempty"`
	WholeDays bool      `json:"whole_days,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`

	// Serial is chosen with the acceptance: upper-case hexadecimal, 32 digits.
	Serial string `json:"serial"`
	// DER is the certificate, as soon as somebody asked for it.
	DER []byte `json:"der,omitempty"`

	CancelledAt      time.Time `json:"cancelled_at,omitzero"`
	RevokedAt        time.Time `json:"revoked_at,omitzero"`
	RevocationReason string    `json:"revocation_reason,omitempty"`
}

// gate is what a human at the CA decides.
type gate struct {
	// Needed says that nothing happens before the approval. ApproveAt is when the human will have approved by himself.
	Needed    bool      `json:"needed,omitempty"`
	ApproveAt time.Time `json:"approve_at,omitzero"`
	// ApprovedAt and RejectedAt are decisions. RejectAt is one that will be taken by itself.
	ApprovedAt time.Time `json:"approved_at,omitzero"`
	RejectedAt time.Time `json:"rejected_at,omitzero"`
	RejectAt   time.Time `json:"reject_at,omitzero"`
	Reason     string    `json:"reason,omitempty"`
	// IssueAt is when an operator of the simulator had it issued, whatever latency says.
	IssueAt time.Time `json:"issue_at,omitzero"`
}

// action is something other than a certificate that a client asked for and a human decides.
type action struct {
	ID      string    `json:"id"`
	Type    string    `json:"type"`
	Request string    `json:"request"` // id of the certificate; empty is all of the order
	Reason  string    `json:"reason,omitempty"`
	Comment string    `json:"comment,omitempty"`
	Asked   time.Time `json:"asked"`
	// Status is pending, approved or rejected. Empty is that of the certificate it is about: an action that asks for one
	// is as that one is.
	Status string `json:"status,omitempty"`
}

// status of an action of the order.
func (o *order) status(a *action, now time.Time) string {
	if a.Status != "" {
		return a.Status
	}
	r, ok := o.request(a.Request)
	switch {
	case !ok:
		return "rejected"
	case !r.rejectedAt(now).IsZero() || !r.CancelledAt.IsZero():
		return "rejected"
	case r.approvedAt(now).IsZero():
		return "pending"
	}
	return "approved"
}

// action finds one by its number, under which the store found the order.
func (o *order) action(id string) *action {
	i := slices.IndexFunc(o.Actions, func(a action) bool { return a.ID == id })
	return &o.Actions[i]
}

func (o *order) clone() *order {
	c := *o
	c.Requests = slices.Clone(o.Requests)
	c.Actions = slices.Clone(o.Actions)
	return &c
}

// set replaces one attribute.
func (o *order) set(name, value string) {
	o.Attributes = maps.Clone(o.Attributes)
	if o.Attributes == nil {
		o.Attributes = map[string]string{}
	}
	o.Attributes[name] = value
}

// request finds a certificate of the order by its number.
func (o *order) request(id string) (*request, bool) {
	for i := range o.Requests {
		if o.Requests[i].ID == id {
			return &o.Requests[i], true
		}
	}
	return nil, false
}

// serial finds a certificate of the order by its serial number.
func (o *order) serial(serial string) (*request, bool) {
	for i := range o.Requests {
		if o.Requests[i].Serial == serial {
			return &o.Requests[i], true
		}
	}
	return nil, false
}

// newest is the certificate that was asked for last.
func (o *order) newest() *request { return &o.Requests[len(o.Requests)-1] }

// approvedAt is when the way was free; zero while it is not.
func (r *request) approvedAt(now time.Time) time.Time {
	switch {
	case !r.Gate.Needed:
		return r.Accepted
	case !r.Gate.ApprovedAt.IsZero():
		return r.Gate.ApprovedAt
	case !r.Gate.ApproveAt.IsZero() && !r.Gate.ApproveAt.After(now):
		return r.Gate.ApproveAt
	}
	return time.Time{}
}

// rejectedAt is when it was refused; zero while it is not.
func (r *request) rejectedAt(now time.Time) time.Time {
	if !r.Gate.RejectedAt.IsZero() {
		return r.Gate.RejectedAt
	}
	if !r.Gate.RejectAt.IsZero() && !r.Gate.RejectAt.After(now) {
		return r.Gate.RejectAt
	}
	return time.Time{}
}

// issuedAt is when it is or will be issued, as far as is known now; zero while a human has to decide.
func (r *request) issuedAt(now time.Time) time.Time {
	if !r.Gate.IssueAt.IsZero() {
		return r.Gate.IssueAt
	}
	at := r.approvedAt(now)
	if at.IsZero() {
		return at
	}
	return at.Add(r.Latency)
}

// state is how the certificate is. Nothing runs to bring it forward: it follows from the time.
func (r *request) state(now time.Time) State {
	issued := r.issuedAt(now)
	switch {
	case !r.CancelledAt.IsZero():
		return Cancelled
	case !r.rejectedAt(now).IsZero():
		return Rejected
	case issued.IsZero():
		return Waiting
	// A rejection that is to come lets nothing be issued before it.
	case issued.After(now) || !r.Gate.RejectAt.IsZero() && r.Gate.IssueAt.IsZero():
		return Processing
	}
	return Issued
}

// fingerprint of what the client asked a certificate for.
func (r *request) fingerprint() string {
	material := r.CSR
	if material == nil {
		material = r.PublicKey
	}
	sum := sha256.Sum256(material)
	return hex.EncodeToString(sum[:])
}

// truth about the order. Its state is that of the newest certificate.
func (o *order) truth(now time.Time) Order {
	first := &o.Requests[0]
	t := Order{
		CA: o.CA, ID: o.ID, Reference: o.Reference, Accepted: o.Accepted, Billed: o.Billed, Forgotten: o.Forgotten,
		CSRSHA256: first.fingerprint(), CommonName: first.CommonName, DNSNames: slices.Clone(first.DNSNames),
		State: o.newest().state(now),
	}
	for i := range o.Requests {
		r := &o.Requests[i]
		t.Requests = append(t.Requests, o.certificate(r, now))
		if r.state(now) != Issued {
			continue
		}
		t.Certificates++
		t.Serials = append(t.Serials, r.Serial)
		if !r.RevokedAt.IsZero() {
			t.Revoked = append(t.Revoked, r.Serial)
		}
	}
	return t
}

// certificate is the truth about one of the order's.
func (o *order) certificate(r *request, now time.Time) Certificate {
	c := Certificate{ID: r.ID, Kind: r.Kind, CSRSHA256: r.fingerprint(), State: r.state(now), Revoked: !r.RevokedAt.IsZero()}
	if c.State == Issued {
		c.Serial = r.Serial
	}
	for i := range o.Actions {
		if a := &o.Actions[i]; a.Request == r.ID && a.Status == "" {
			c.Reference = a.Comment
		}
	}
	return c
}

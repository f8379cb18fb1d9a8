package casimulator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxBody bounds what a client may send.
const maxBody = 1 << 20

// api is the API of one CA.
type api interface {
	// name of the CA, which is the first element of its paths too.
	name() string
	operations() []operation
	// problem is how this CA says that something is wrong.
	problem(status int, message string) reply
	// refusal is problem with a code of the caller's; empty is the usual one, and a CA without codes leaves it out.
	refusal(status int, code, message string) reply
	// locate finds the order that an operation's path names, for faults that are about one order.
	locate(c *call) (*order, bool)
}

// operation is something that a client can ask a CA for.
type operation struct {
	// name is what faults call it: one of Operations.
	name string
	// method and path are a pattern of http.ServeMux. The path begins after the name of the CA.
	method, path string
	// clientCertificate says that it needs one.
	clientCertificate bool
	// about says of a submission what it is for, before it is judged; nil where the path says it (see api.locate).
	about func(c *call) subject
	// handle does it.
	handle func(c *call) reply
}

// Names of operations. Several routes of an API may have the same name.
const (
	opSubmit   = "submit"   // a new order
	opStatus   = "status"   // of one order or certificate
	opCollect  = "collect"  // the certificate itself, where that is another call
	opList     = "list"     // orders or certificates
	opChanges  = "changes"  // a feed of what changed
	opReissue  = "reissue"  // another certificate of the same order
	opRenew    = "renew"    // where that is another call than submit
	opRevoke   = "revoke"   //
	opCancel   = "cancel"   // an order that is pending
	opApprove  = "approve"  // or refuse, over the CA's own API
	opLogin    = "login"    //
	opProbe    = "probe"    // what says whether credentials and settings are right
	opProfiles = "profiles" // what can be ordered
	opChain    = "chain"    // the certificates above the leaf
	opOther    = "other"    //
)

// Operations are the names that faults may give.
func Operations() []string {
	return []string{
		opSubmit, opStatus, opCollect, opList, opChanges, opReissue, opRenew, opRevoke, opCancel, opApprove, opLogin, opProbe,
		opProfiles, opChain, opOther,
	}
}

// reply is what a CA answers.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// jsonReply has a JSON body; nil is none.
func jsonReply(status int, v any) reply {
	r := reply{status: status, header: http.Header{}}
	if v == nil {
		return r
	}
	body, err := json.Marshal(v)
	if err != nil {
		return reply{status: http.StatusInternalServerError, header: http.Header{}, body: []byte(err.Error())}
	}
	r.body = body
	r.header.Set("Content-Type", "application/json")
	return r
}

// call is one request to one operation.
type call struct {
	sim       *Simulator
	api       api
	operation operation
	request   *http.Request
	body      []byte
	now       time.Time // true time; Simulator.said makes the CA's time of it
	subject   subject
	faults    []Kind // what went wrong on purpose
}

// fault tells whether a fault of this kind is due for this call.
func (c *call) fault(kinds ...Kind) (Fault, bool) {
	f, ok := c.sim.faults.take(c.api.name(), c.operation.name, c.subject, kinds...)
	if ok {
		c.faults = append(c.faults, f.Kind)
	}
	return f, ok
}

func (c *call) path(name string) string { return c.request.PathValue(name) }

// violate records that the client did wrong.
func (c *call) violate(format string, args ...any) {
	c.sim.record.violate(Violation{
		At: c.now, CA: c.api.name(), Operation: c.operation.name, Method: c.request.Method, Path: c.request.URL.Path,
		Message: fmt.Sprintf(format, args...),
	})
}

// refuse records a violation and answers in the CA's form.
func (c *call) refuse(status int, format string, args ...any) reply {
	c.violate(format, args...)
	return c.api.problem(status, fmt.Sprintf(format, args...))
}

// decode reads a JSON body strictly. What is wrong with it is for the API to put into its own form; it is recorded.
func (c *call) decode(into any) error {
	err := c.decodeStrictly(into)
	if err != nil {
		c.violate("%v", err)
	}
	return err
}

// peek reads what it can of a JSON body, for operation.about, and judges nothing.
func (c *call) peek(into any) { _ = json.Unmarshal(c.body, into) }

func (c *call) decodeStrictly(into any) error {
	media, _, err := mime.ParseMediaType(c.request.Header.Get("Content-Type"))
	if err != nil || media != "application/json" {
		return fmt.Errorf("content type is %q, not application/json", c.request.Header.Get("Content-Type"))
	}
	d := json.NewDecoder(bytes.NewReader(c.body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("request body: there is more than one JSON value")
	}
	return nil
}

// parseCSR reads a PEM request and judges its signature and its key as public CAs do.
func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("CSR: no CERTIFICATE REQUEST in PEM")
	}
	if strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("CSR: there is something behind it")
	}
	return checkCSR(block.Bytes)
}

// checkCSR is parseCSR for DER.
func checkCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	return csr, checkKey(csr.PublicKey)
}

func checkKey(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("CSR: an RSA key of %d bits is too short", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return errors.New("CSR: the curve is too small")
		}
	default:
		return fmt.Errorf("CSR: no public CA certifies a key of type %T", key)
	}
	return nil
}

// newRequest is a request for a certificate under the scenario's latency, approval and faults. The API fills in what is
// to be certified.
func (c *call) newRequest(kind string) request {
	r := request{ID: c.sim.store.id(), Kind: kind, Accepted: c.now, Serial: formatSerial(newSerial())}
	c.sim.hold(&r, c)
	return r
}

// hold lets scenario and faults decide when the certificate comes.
func (s *Simulator) hold(r *request, c *call) {
	latency, approval := s.behaviour()
	r.Latency = latency
	if approval.Needed {
		r.wait(approval.After)
	}
	if f, ok := c.fault(NeedsApproval); ok {
		r.wait(f.Delay)
	}
	if f, ok := c.fault(IssueAfter); ok {
		r.Latency = f.Delay
	}
	if f, ok := c.fault(Reject); ok {
		r.Gate.RejectAt, r.Gate.Reason = r.Accepted.Add(f.Delay), f.Reason
		if r.Gate.Reason == "" {
			r.Gate.Reason = "refused by the scenario"
		}
	}
}

// wait for a human, who approves by himself after a time if that is not zero.
func (r *request) wait(after time.Duration) {
	r.Gate.Needed = true
	if after > 0 {
		r.Gate.ApproveAt = r.Accepted.Add(after)
	}
}

// accept stores a new order. When it returns, the order survives the end of the process.
func (c *call) accept(o *order) error {
	if _, ok := c.fault(DuplicateOrder); ok {
		return c.sim.store.add(o, c.duplicate(o))
	}
	return c.sim.store.add(o)
}

// duplicate is the same order once more, with numbers of its own. An order that is named as its certificate is stays so.
func (c *call) duplicate(o *order) *order {
	d := o.clone()
	renamed := map[string]string{}
	for i := range d.Requests {
		r := &d.Requests[i]
		id, serial := c.sim.store.id(), formatSerial(newSerial())
		if r.ID == r.Serial {
			id = serial
		}
		renamed[r.ID], renamed[r.Serial] = id, serial
		r.ID, r.Serial = id, serial
	}
	for i := range d.Actions {
		d.Actions[i].ID, d.Actions[i].Request = c.sim.store.id(), renamed[d.Actions[i].Request]
	}
	if d.ID = renamed[o.ID]; d.ID == "" {
		d.ID = c.sim.store.id()
	}
	return d
}

// visible is an order that this CA admits to have.
func (c *call) visible(o *order, ok bool) (*order, bool) {
	if !ok || o.Forgotten {
		return nil, false
	}
	if _, forgotten := c.fault(Forgotten); forgotten {
		return nil, false
	}
	return o, true
}

// listed is the moment up to which a list knows of orders: now, unless a fault makes it late or forget everything.
func (c *call) listed() time.Time {
	f, ok := c.fault(Forgotten)
	switch {
	case !ok:
		return c.now
	case f.Delay == 0:
		return time.Time{}
	}
	return c.now.Add(-f.Delay)
}

// certificate gives the DER of an issued certificate, which is made now if nobody asked before.
func (s *Simulator) certificate(o *order, id string) ([]byte, error) {
	if r, ok := o.request(id); ok && r.DER != nil {
		return r.DER, nil
	}
	changed, err := s.store.update(o.CA, o.ID, func(o *order) error {
		r, ok := o.request(id)
		if !ok {
			return errNotFound
		}
		if r.DER != nil {
			return nil
		}
		if state := r.state(s.now()); state != Issued {
			return fmt.Errorf("make certificate %s: it is %s", id, state)
		}
		der, err := s.authority.sign(r, s.said(r.issuedAt(s.now())), s.defects(o, r))
		r.DER = der
		return err
	})
	if err != nil {
		return nil, err
	}
	r, _ := changed.request(id)
	return r.DER, nil
}

func (s *Simulator) defects(o *order, r *request) defects {
	about := subject{commonName: r.CommonName, order: o.ID, reference: o.Reference}
	has := func(k Kind) bool {
		_, ok := s.faults.take(o.CA, "", about, k)
		return ok
	}
	return defects{key: has(WrongKey), name: has(WrongName), early: has(NotYetValid)}
}

// chain is the certificate and those above it, without the root, in the order of an honest server, unless a fault says
// otherwise.
func (c *call) chain(leaf []byte, withRoot bool) [][]byte {
	out := [][]byte{leaf}
	if _, ok := c.fault(MissingIntermediate); !ok {
		out = append(out, c.sim.authority.intermediate.certificate.Raw)
	}
	if withRoot {
		out = append(out, c.sim.authority.root.certificate.Raw)
	}
	if _, ok := c.fault(RootFirst); ok {
		if !withRoot {
			out = append(out, c.sim.authority.root.certificate.Raw)
		}
		slices.Reverse(out)
	}
	return out
}

// serial is what an answer says of a certificate's serial number: upper-case hexadecimal, true unless a fault says otherwise.
func (c *call) serial(r *request) string {
	if _, ok := c.fault(WrongSerial); ok {
		return formatSerial(newSerial())
	}
	return r.Serial
}

// digest names something by its content.
func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

package casimulator

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Attributes of an order here.
const (
	ecsTrackingOf  = "tracking"   // JSON of ecsTracking
	ecsReplaced    = "replaced"   // how another certificate takes its place: reissue or renewal
	ecsReplacedBy  = "replacedBy" // the number of that one
	ecsSuspended   = "suspended"
	ecsDeactivated = "deactivated" // when
	ecsUsage       = "eku"
	ecsKeySize     = "keySize"
)

// about is what faults may ask of a submission.
func (a *entrustecsAPI) about(c *call) subject {
	var in ecsRequest
	c.peek(&in)
	var s subject
	if in.Tracking != nil {
		s.reference = in.Tracking.TrackingInfo
	}
	if csr, err := ecsCSR(in.CSR); err == nil {
		var r request
		in.fillNames(csr, &r, &complain{})
		s.commonName = r.CommonName
	}
	return s
}

// submit orders a certificate, or only says whether it could be.
func (a *entrustecsAPI) submit(c *call) reply {
	var in ecsRequest
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	_, answer := a.order(c, &in, "new", 1, nil)
	return answer
}

// order judges a request and accepts it, unless it shall only be judged. An end is that of a certificate before it.
func (a *entrustecsAPI) order(c *call, in *ecsRequest, kind string, billed int, end *time.Time) (*order, reply) {
	r := request{}
	if wrong := a.fill(in, &r, a.sim.said(c.now)); len(wrong) > 0 {
		c.violate("%s", strings.Join(wrong, "; "))
		return nil, ecsProblem(http.StatusBadRequest, wrong...)
	}
	if end != nil {
		r.NotAfter = *end
	}
	if in.ValidateOnly {
		return nil, jsonReply(http.StatusOK, struct{}{})
	}
	held := c.newRequest(kind)
	r.ID, r.Kind, r.Accepted, r.Serial, r.Gate, r.Latency = held.ID, held.Kind, held.Accepted, held.Serial, held.Gate, held.Latency
	if in.QueueForApproval {
		r.Gate.Needed = true
	}
	tracking, err := json.Marshal(in.Tracking)
	if err != nil {
		return nil, a.problem(http.StatusInternalServerError, err.Error())
	}
	o := &order{
		CA: EntrustECS, ID: r.ID, Reference: in.Tracking.TrackingInfo, Product: in.CertType, Accepted: c.now, Billed: billed,
		Attributes: map[string]string{
			ecsTrackingOf: string(tracking), ecsUsage: cmp.Or(in.EKU, "SERVER_AUTH"), ecsKeySize: strconv.Itoa(keySize(r.CSR)),
		},
		Requests: []request{r},
	}
	if err := c.accept(o); err != nil {
		return nil, a.problem(http.StatusInternalServerError, err.Error())
	}
	return o, a.accepted(c, o)
}

// ecsAnswer is what an order, a renewal, a re-issue and an approval answer.
type ecsAnswer struct {
	TrackingID    int64    `json:"trackingId"`
	EndEntityCert string   `json:"endEntityCert,omitempty"`
	ChainCerts    []string `json:"chainCerts,omitempty"`
	SerialNumber  string   `json:"serialNumber,omitempty"`
	ExpiresAfter  string   `json:"expiresAfter,omitempty"`
	PickupURL     string   `json:"pickupUrl,omitempty"`
}

// accepted answers 201 with the certificate, or 202 when it is still to come.
func (a *entrustecsAPI) accepted(c *call, o *order) reply {
	out := ecsAnswer{TrackingID: trackingID(o)}
	r := &o.Requests[0]
	if r.state(c.now) != Issued {
		return jsonReply(http.StatusAccepted, out)
	}
	leaf, chain, err := a.pems(c, o, r)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	out.EndEntityCert, out.ChainCerts, out.SerialNumber = leaf, chain, c.serial(r)
	out.ExpiresAfter = r.NotAfter.Format(time.RFC3339)
	out.PickupURL = "https://" + c.request.Host + "/ssl/certpickup.cfm?id=" + o.ID
	return jsonReply(http.StatusCreated, out)
}

// pems are the certificate, and the chain with the certificate as its first.
func (a *entrustecsAPI) pems(c *call, o *order, r *request) (leaf string, chain []string, err error) {
	der, err := a.sim.certificate(o, r.ID)
	if err != nil {
		return "", nil, err
	}
	for _, each := range c.chain(der, true) {
		chain = append(chain, string(encodeCertificates(each)))
	}
	return string(encodeCertificates(der)), chain, nil
}

// status is the API's word for how an order is.
func (a *entrustecsAPI) status(o *order, now time.Time) string {
	r := &o.Requests[0]
	switch r.state(now) {
	case Waiting:
		return "PENDING"
	case Processing:
		if r.Gate.Needed {
			return "APPROVED"
		}
		return "PENDING"
	case Rejected, Cancelled:
		return "DECLINED"
	case Issued:
		return a.issuedStatus(o, now)
	}
	return "NA"
}

func (a *entrustecsAPI) issuedStatus(o *order, now time.Time) string {
	r := &o.Requests[0]
	switch {
	case !r.RevokedAt.IsZero() && o.Attributes[ecsReplaced] == "reissue" && r.RevocationReason == "superseded":
		return "REISSUED"
	case !r.RevokedAt.IsZero():
		return "REVOKED"
	case o.Attributes[ecsDeactivated] != "":
		return "DEACTIVATED"
	case !r.NotAfter.After(a.sim.said(now)):
		return "EXPIRED"
	case o.Attributes[ecsSuspended] != "":
		return "SUSPENDED"
	case o.Attributes[ecsReplaced] != "":
		return a.replaced(o, now)
	}
	return "ACTIVE"
}

// replaced is the word for a certificate that another one takes the place of, or will.
func (a *entrustecsAPI) replaced(o *order, now time.Time) string {
	words := map[string][2]string{"reissue": {"REISSUING", "REISSUED"}, "renewal": {"RENEWING", "RENEWED"}}[o.Attributes[ecsReplaced]]
	next, ok := a.sim.store.byID(EntrustECS, o.Attributes[ecsReplacedBy])
	switch {
	case !ok:
		return "ACTIVE"
	case next.Requests[0].state(now) == Issued:
		return words[1]
	case next.Requests[0].state(now) == Rejected:
		return "ACTIVE"
	}
	return words[0]
}

// ecsCertificate is a certificate in a list.
type ecsCertificate struct {
	Status        string `json:"status"`
	TrackingID    int64  `json:"trackingId"`
	URI           string `json:"uri"`
	DN            string `json:"dn"`
	SerialNumber  string `json:"serialNumber,omitempty"`
	IssueDateTime string `json:"issueDateTime,omitempty"`
	ExpiresAfter  string `json:"expiresAfter,omitempty"`
	SigningAlg    string `json:"signingAlg"`
	EKU           string `json:"eku"`
	KeySize       int    `json:"keySize"`
	Org           string `json:"org"`
	CertType      string `json:"certType"`
	DomainUsed    string `json:"domainUsed"`
	IsThirdParty  bool   `json:"isThirdParty"`
}

func (a *entrustecsAPI) describe(c *call, o *order) ecsCertificate {
	r := &o.Requests[0]
	size, _ := strconv.Atoi(o.Attributes[ecsKeySize]) // it was written here
	out := ecsCertificate{
		Status: a.status(o, c.now), TrackingID: trackingID(o), URI: "/v2/certificates/" + o.ID, DN: r.subjectName(), SigningAlg: "SHA-2",
		EKU: o.Attributes[ecsUsage], KeySize: size, Org: r.Organization, CertType: o.Product, DomainUsed: r.CommonName,
		ExpiresAfter: r.NotAfter.Format(time.RFC3339),
	}
	if r.state(c.now) == Issued {
		out.SerialNumber = c.serial(r)
		out.IssueDateTime = a.sim.said(r.issuedAt(c.now)).Format(time.RFC3339)
	}
	return out
}

type ecsName struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// find gives the order of the path.
func (a *entrustecsAPI) find(c *call) (*order, reply, bool) {
	o, ok := c.visible(a.locate(c))
	if !ok {
		return nil, ecsProblem(http.StatusNotFound, "there is no certificate with tracking ID "+c.path("id")), false
	}
	return o, reply{}, true
}

// get gives all about one certificate.
func (a *entrustecsAPI) get(c *call) reply {
	o, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	r := &o.Requests[0]
	out := struct {
		ecsCertificate
		SubjectAltName []ecsName   `json:"subjectAltName"`
		Tracking       ecsTracking `json:"tracking"`
		EndEntityCert  string      `json:"endEntityCert,omitempty"`
		ChainCerts     []string    `json:"chainCerts,omitempty"`
		CSR            string      `json:"csr"`
		CreatorName    string      `json:"creatorName"`
		DeclineReason  string      `json:"declineReason,omitempty"`
	}{ecsCertificate: a.describe(c, o), Tracking: o.tracking(), CreatorName: a.sim.Credentials().EntrustECSUser}
	out.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR}))
	for _, n := range r.DNSNames {
		out.SubjectAltName = append(out.SubjectAltName, ecsName{"dNSName", n})
	}
	for _, n := range r.IPAddresses {
		out.SubjectAltName = append(out.SubjectAltName, ecsName{"iPAddress", n})
	}
	switch r.state(c.now) {
	case Issued:
		var err error
		if out.EndEntityCert, out.ChainCerts, err = a.pems(c, o, r); err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
	case Rejected, Cancelled:
		out.DeclineReason = r.Gate.Reason
	case Waiting, Processing:
	}
	return jsonReply(http.StatusOK, out)
}

func (o *order) tracking() ecsTracking {
	var t ecsTracking
	_ = json.Unmarshal([]byte(o.Attributes[ecsTrackingOf]), &t) // it was written here
	if at, err := time.Parse(time.RFC3339, o.Attributes[ecsDeactivated]); err == nil {
		t.Deactivated, t.DeactivatedOn = true, &at
	}
	return t
}

// with changes one attribute of an order.
func (o *order) with(name, value string) {
	o.Attributes = maps.Clone(o.Attributes)
	if value == "" {
		delete(o.Attributes, name)
		return
	}
	o.Attributes[name] = value
}

// ecsReasons are those that revocations take: Entrust takes no others any more.
func ecsReasons() []string { return []string{"unspecified", "keyCompromise"} }

// revoke answers without a body.
func (a *entrustecsAPI) revoke(c *call) reply {
	var in struct {
		CRLReason         string `json:"crlReason"`
		RevocationComment string `json:"revocationComment"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	if !slices.Contains(ecsReasons(), in.CRLReason) {
		return c.refuse(http.StatusBadRequest, "crlReason %q is none of %v", in.CRLReason, ecsReasons())
	}
	o, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	r := &o.Requests[0]
	switch {
	case r.state(c.now) != Issued:
		return a.problem(http.StatusBadRequest, "a certificate with status "+a.status(o, c.now)+" cannot be revoked")
	case !r.RevokedAt.IsZero():
		return a.problem(http.StatusBadRequest, "the certificate is revoked already")
	}
	_, wait := c.fault(NeedsApproval)
	id := a.sim.store.id()
	_, err := a.sim.store.update(EntrustECS, o.ID, func(o *order) error {
		if !wait {
			o.Requests[0].revoke(c.now, in.CRLReason)
			return nil
		}
		o.Actions = append(o.Actions, action{
			ID: id, Type: "revoke", Request: o.Requests[0].ID, Reason: in.CRLReason, Comment: in.RevocationComment, Asked: c.now, Status: "pending",
		})
		return nil
	})
	switch {
	case err != nil:
		return a.problem(http.StatusInternalServerError, err.Error())
	case wait:
		return jsonReply(http.StatusAccepted, nil)
	}
	return jsonReply(http.StatusOK, nil)
}

package casimulator

import (
	"net/http"
	"slices"
	"time"
)

// digicertCertificateInfo is a certificate in order info and in lists of re-issues. What only an issued one has is
// omitted before.
type digicertCertificateInfo struct {
	ID            int64          `json:"id,omitempty"`
	Thumbprint    string         `json:"thumbprint,omitempty"`
	SerialNumber  string         `json:"serial_number,omitempty"`
	CommonName    string         `json:"common_name"`
	DNSNames      []string       `json:"dns_names"`
	Status        string         `json:"status,omitempty"`
	DateCreated   string         `json:"date_created"`
	DateIssued    string         `json:"date_issued,omitempty"`
	ValidFrom     string         `json:"valid_from,omitempty"`
	ValidTill     string         `json:"valid_till,omitempty"`
	DaysRemaining *int           `json:"days_remaining,omitempty"`
	CSR           string         `json:"csr"`
	SignatureHash string         `json:"signature_hash"`
	Organization  map[string]any `json:"organization,omitempty"`
	CACert        map[string]any `json:"ca_cert,omitempty"`
}

// orderInfo answers page "Order info".
func (a *digicertAPI) orderInfo(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound("order")
	}
	primary := a.primary(c.now, o)
	certificate, err := a.certificateInfo(c, o, primary)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	status := a.orderStatus(c.now, o)
	if status == "needs_approval" {
		certificate.ID = 0 // it gets its number with the approval
	}
	certificate.Status = ""
	certificate.Organization = map[string]any{"id": c.sim.Credentials().DigiCertOrganization}
	certificate.CACert = map[string]any{"id": "SIMULATORINTERMEDIATE", "name": "CA Simulator Intermediate"}
	return jsonReply(http.StatusOK, map[string]any{
		"id": number(o.ID), "certificate": certificate, "status": status,
		"date_created": c.sim.said(o.Accepted).Format(digicertTime), "order_valid_till": o.Attributes["order_valid_till"],
		"organization": a.organizationBody(c), "product": a.productBody(o), "requests": a.requestBodies(c, o),
		"container": map[string]any{"id": 1, "name": "Simulator"}, "is_renewed": a.renewed(o), "has_duplicates": hasKind(o, "duplicate"),
		"dcv_method": "dns-txt-token", "payment_method": "balance", "user": a.requester(),
	})
}

// renewed says whether another order renews this one.
func (a *digicertAPI) renewed(o *order) bool {
	for _, other := range a.sim.store.named(DigiCert, o.Requests[0].CommonName) {
		if other.Attributes["renewal_of"] == o.ID {
			return true
		}
	}
	return false
}

func hasKind(o *order, kind string) bool {
	return slices.ContainsFunc(o.Requests, func(r request) bool { return r.Kind == kind })
}

func (a *digicertAPI) productBody(o *order) digicertProduct {
	p, _ := findProduct(o.Product) // it was ordered
	return p
}

func (a *digicertAPI) certificateInfo(c *call, o *order, r *request) (digicertCertificateInfo, error) {
	info := digicertCertificateInfo{
		ID: number(r.ID), CommonName: r.CommonName, DNSNames: append(slices.Clone(r.DNSNames), r.IPAddresses...),
		Status: a.certificateStatus(c.now, r), DateCreated: c.sim.said(r.Accepted).Format(digicertTime), CSR: r.csrPEM(), SignatureHash: "sha256",
	}
	if r.state(c.now) != Issued {
		return info, nil
	}
	der, err := c.sim.certificate(o, r.ID)
	if err != nil {
		return info, err
	}
	begin, end := r.validity(c)
	days := int(end.Sub(c.sim.said(c.now)) / (24 * time.Hour))
	info.Thumbprint, info.SerialNumber = thumbprint(der), c.serial(r)
	info.DateIssued = c.sim.said(r.issuedAt(c.now)).Format(digicertTime)
	info.ValidFrom, info.ValidTill, info.DaysRemaining = begin.Format(digicertDate), end.Format(digicertDate), &days
	return info, nil
}

// validity of an issued certificate as it was to be.
func (r *request) validity(c *call) (begin, end time.Time) {
	begin = c.sim.said(r.issuedAt(c.now))
	if r.WholeDays {
		begin = begin.Truncate(24 * time.Hour)
	}
	if !r.NotBefore.IsZero() {
		begin = r.NotBefore
	}
	return begin, r.expires(begin)
}

// requestBodies are the requests of an order, newest first as in the documentation's examples.
func (a *digicertAPI) requestBodies(c *call, o *order) []any {
	out := []any{}
	for i := len(o.Actions) - 1; i >= 0; i-- {
		out = append(out, a.requestBody(c, o, &o.Actions[i]))
	}
	return out
}

func (a *digicertAPI) requestBody(c *call, o *order, act *action) map[string]any {
	body := map[string]any{
		"id": number(act.ID), "date": c.sim.said(act.Asked).Format(digicertTime), "type": act.Type, "status": o.status(act, c.now),
		"requester": a.requester(), "comments": act.Comment,
	}
	if r, ok := o.request(act.Request); ok && act.Status == "" && r.Gate.Reason != "" && body["status"] == "rejected" {
		body["processor_comment"] = r.Gate.Reason
	}
	return body
}

// listOf answers pages "List reissues" and "List duplicates".
func (a *digicertAPI) listOf(kind string) func(*call) reply {
	return func(c *call) reply {
		o, ok := a.find(c)
		if !ok {
			return a.notFound("order")
		}
		out := []digicertCertificateInfo{}
		for i := range o.Requests {
			if o.Requests[i].Kind != kind {
				continue
			}
			info, err := a.certificateInfo(c, o, &o.Requests[i])
			if err != nil {
				return a.problem(http.StatusInternalServerError, err.Error())
			}
			out = append(out, info)
		}
		return jsonReply(http.StatusOK, map[string]any{"certificates": out})
	}
}

// requestInfo answers page "Request info".
func (a *digicertAPI) requestInfo(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound("request")
	}
	act := o.action(c.path("request"))
	body := a.requestBody(c, o, act)
	body["order"] = a.requestOrder(c, o)
	return jsonReply(http.StatusOK, body)
}

func (a *digicertAPI) requestOrder(c *call, o *order) map[string]any {
	return map[string]any{
		"id": number(o.ID), "status": a.orderStatus(c.now, o), "certificate": map[string]any{"common_name": o.newest().CommonName},
		"organization": map[string]any{"id": c.sim.Credentials().DigiCertOrganization, "name": "Example Inc"},
		"container":    map[string]any{"id": 1, "name": "Simulator"}, "product": a.productBody(o),
	}
}

// listRequests answers page "List requests"; of its filters there are status and type.
func (a *digicertAPI) listRequests(c *call) reply {
	page, wrong, ok := a.page(c, []string{"status", "type"})
	if !ok {
		return wrong
	}
	type entry struct {
		order  *order
		action *action
	}
	var found []entry
	for _, o := range a.sim.store.all(DigiCert) {
		for i := range o.Actions {
			act := &o.Actions[i]
			if !o.Forgotten && page.matches("status", o.status(act, c.now)) && page.matches("type", act.Type) {
				found = append(found, entry{order: o, action: act})
			}
		}
	}
	out := []any{}
	for _, e := range cut(found, page) {
		body := a.requestBody(c, e.order, e.action)
		body["order"] = a.requestOrder(c, e.order)
		out = append(out, body)
	}
	return jsonReply(http.StatusOK, map[string]any{"requests": out, "page": page.body(len(found))})
}

// digicertDecision is page "Update request status".
type digicertDecision struct {
	Status           string `json:"status"`
	ProcessorComment string `json:"processor_comment"`
}

// decideRequest lets an administrator of the account approve or reject.
func (a *digicertAPI) decideRequest(c *call) reply {
	var in digicertDecision
	if err := c.decode(&in); err != nil {
		return digicertProblem(http.StatusBadRequest, "bad_request_format", err.Error())
	}
	if in.Status != "approved" && in.Status != "rejected" {
		return a.wrong(c, "invalid_status", "status is %q, neither approved nor rejected", in.Status) // ours
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound("request")
	}
	_, err := c.sim.store.update(DigiCert, o.ID, func(o *order) error {
		act := o.action(c.path("request"))
		return o.decide(act, in.Status, in.ProcessorComment, c.now)
	})
	if err != nil {
		return a.wrong(c, "request_already_processed", "%v", err) // ours
	}
	return reply{status: http.StatusNoContent}
}

// decide a pending action of the order.
func (o *order) decide(act *action, status, comment string, now time.Time) error {
	if o.status(act, now) != "pending" {
		return &badControl{"the request is not pending"}
	}
	if act.Status == "pending" {
		act.Status = status
		if status == "rejected" {
			return nil
		}
		return o.perform(act, now)
	}
	r, _ := o.request(act.Request)
	if status == "rejected" {
		r.Gate.RejectedAt, r.Gate.Reason = now, comment
		return nil
	}
	r.Gate.ApprovedAt = now
	return nil
}

package casimulator

import (
	"cmp"
	"encoding/base64"
	"errors"
	"net/http"
	"time"
)

// ecsRenewFrom is how old a certificate has to be before it can be renewed.
const ecsRenewFrom = 30 * 24 * time.Hour

// patch decides an order that waits, or suspends a certificate.
func (a *entrustecsAPI) patch(c *call) reply {
	var in struct {
		Operation     string `json:"operation"`
		DeclineReason string `json:"declineReason"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	o, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	status := a.status(o, c.now)
	from := map[string]string{"APPROVE": "PENDING", "DECLINE": "PENDING", "SUSPEND": "ACTIVE", "UNSUSPEND": "SUSPENDED"}[in.Operation]
	switch {
	case from == "":
		return c.refuse(http.StatusBadRequest, "operation %q is none of APPROVE, DECLINE, SUSPEND, UNSUSPEND", in.Operation)
	case in.DeclineReason != "" && in.Operation != "DECLINE":
		return c.refuse(http.StatusBadRequest, "declineReason is for DECLINE only")
	case status != from:
		return a.problem(http.StatusBadRequest, "operation "+in.Operation+" is not valid for a certificate with status "+status)
	}
	changed, err := a.sim.store.update(EntrustECS, o.ID, func(o *order) error {
		switch in.Operation {
		case "APPROVE":
			return o.approve(c.now)
		case "DECLINE":
			return o.reject(c.now, cmp.Or(in.DeclineReason, "declined"))
		case "SUSPEND":
			o.with(ecsSuspended, "true")
		case "UNSUSPEND":
			o.with(ecsSuspended, "")
		}
		return nil
	})
	var bad *badControl
	switch {
	case errors.As(err, &bad): // it is pending, and waits for nobody
		return a.problem(http.StatusBadRequest, bad.message)
	case err != nil:
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	r := a.accepted(c, changed)
	r.status = http.StatusOK
	return r
}

// deactivate takes a certificate out of the account's inventory. It stays valid. Its answer has no body.
func (a *entrustecsAPI) deactivate(c *call) reply {
	o, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	if status := a.status(o, c.now); status != "ACTIVE" && status != "SUSPENDED" {
		return a.problem(http.StatusBadRequest, "a certificate with status "+status+" cannot be deactivated")
	}
	_, err := a.sim.store.update(EntrustECS, o.ID, func(o *order) error {
		o.with(ecsDeactivated, a.sim.said(c.now).Format(time.RFC3339))
		return nil
	})
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return jsonReply(http.StatusOK, nil)
}

// renew orders the certificate that comes after one, for another term. It has a number of its own.
func (a *entrustecsAPI) renew(c *call) reply {
	return a.replace(c, "renewal", func(o *order, in *ecsRequest) (*time.Time, string) {
		if issued := o.Requests[0].issuedAt(c.now); c.now.Sub(issued) < ecsRenewFrom {
			return nil, "a certificate can be renewed 30 days after it was issued"
		}
		return nil, ""
	})
}

// reissue makes the certificate again within its term. It has a number of its own, and the old one is revoked.
func (a *entrustecsAPI) reissue(c *call) reply {
	return a.replace(c, "reissue", func(o *order, in *ecsRequest) (*time.Time, string) {
		end := o.Requests[0].NotAfter
		in.CertExpiryDate, in.CertLifetime = "", "P1Y" // what a client says of it is passed over
		return &end, ""
	})
}

// replace is a renewal or a re-issue. What its request leaves out is as it was.
func (a *entrustecsAPI) replace(c *call, kind string, judge func(*order, *ecsRequest) (end *time.Time, refusal string)) reply {
	var in ecsRequest
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	if in.CertType != "" || in.QueueForApproval || in.ValidateOnly && kind == "reissue" {
		return c.refuse(http.StatusBadRequest, "certType, queueForApproval and, for re-issues, validateOnly are for new orders only")
	}
	old, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	if status := a.status(old, c.now); status != "ACTIVE" && (status != "EXPIRED" || kind != "renewal") {
		return a.problem(http.StatusBadRequest, "a certificate with status "+status+" has no "+kind)
	}
	in.inherit(old)
	end, refusal := judge(old, &in)
	if refusal != "" {
		return a.problem(http.StatusBadRequest, refusal)
	}
	billed := 1
	if kind == "reissue" {
		billed = 0
	}
	next, answer := a.order(c, &in, kind, billed, end)
	if next == nil {
		return answer
	}
	_, err := a.sim.store.update(EntrustECS, old.ID, func(o *order) error {
		o.with(ecsReplaced, kind)
		o.with(ecsReplacedBy, next.ID)
		if kind == "reissue" && next.Requests[0].state(c.now) == Issued {
			o.Requests[0].revoke(c.now, "superseded")
		}
		return nil
	})
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return answer
}

// inherit fills in what a renewal or a re-issue leaves out.
func (in *ecsRequest) inherit(o *order) {
	r := &o.Requests[0]
	in.CertType = o.Product
	if in.CSR == "" {
		in.CSR = base64.StdEncoding.EncodeToString(r.CSR)
		if len(in.SubjectAltName) == 0 {
			in.SubjectAltName = append(append([]string{}, r.DNSNames...), r.IPAddresses...)
		}
	}
	in.EKU = cmp.Or(in.EKU, o.Attributes[ecsUsage])
	if in.Tracking == nil {
		t := o.tracking()
		in.Tracking = &t
	}
}

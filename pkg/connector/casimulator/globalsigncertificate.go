package casimulator

import (
	"encoding/pem"
	"net/http"
	"slices"
	"time"
)

// submit accepts a request. Its answer is empty: the serial number is in the Location, and the certificate is there
// when GET says so.
func (a *globalsignAPI) submit(c *call) reply {
	var in globalSignRequest
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	account := a.account()
	key, notBefore, notAfter, wrong := in.check(account.policy(), a.sim.said(c.now))
	if len(wrong) > 0 {
		return a.invalid(c, wrong)
	}
	if account.Quota != nil { // two requests at once must not both take the last one
		a.quotaMu.Lock()
		defer a.quotaMu.Unlock()
	}
	if account.Quota != nil && a.remaining(account) <= 0 {
		return a.problem(http.StatusForbidden, "the issuance quota of the account is used up")
	}
	r := c.newRequest("new")
	r.CSR, r.PublicKey = key.csr, key.public
	r.CommonName, r.Organization = in.SubjectDN.CommonName, globalSignOrganization(account)
	r.DNSNames, r.IPAddresses, r.Emails, r.URIs = in.SAN.DNSNames, in.SAN.IPAddresses, in.SAN.Emails, in.SAN.URIs
	r.ExtKeyUsages = in.ExtendedKeyUsages
	r.NotBefore, r.NotAfter = notBefore, notAfter
	err := c.accept(&order{CA: GlobalSign, ID: r.Serial, Accepted: c.now, Billed: 1, Requests: []request{r}})
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return globalSignCreated(c, r.Serial)
}

func globalSignOrganization(account GlobalSignAccount) string {
	o := account.policy().SubjectDN.Organization
	if o == nil || o.Presence != PresenceStatic {
		return ""
	}
	return o.Format
}

func globalSignCreated(c *call, serial string) reply {
	r := globalSignReply(http.StatusCreated, nil)
	r.header.Set("Location", "https://"+c.request.Host+"/"+GlobalSign+"/v2/certificates/"+serial)
	return r
}

// find gives the certificate that the path names; when there is none, or it is not issued, the answer that says so.
func (a *globalsignAPI) find(c *call) (o *order, r *request, wrong reply, ok bool) {
	serial := c.path("serial")
	o, known := c.visible(a.locate(c))
	if !known {
		return nil, nil, a.problem(http.StatusNotFound, "there is no certificate with this serial number"), false
	}
	r, _ = o.serial(serial)
	switch r.state(c.now) {
	case Issued:
		return o, r, reply{}, true
	case Rejected, Cancelled:
		return o, r, a.problem(http.StatusUnprocessableEntity, "the certificate request was refused: "+r.Gate.Reason), false
	case Waiting, Processing:
	}
	return o, r, a.problem(http.StatusAccepted, "the certificate is being made"), false
}

// get gives a certificate, or 202 while it is being made.
func (a *globalsignAPI) get(c *call) reply {
	o, r, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	der, err := a.certificate(c, o, r)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	status, updated := "ISSUED", r.issuedAt(c.now)
	if !r.RevokedAt.IsZero() {
		status, updated = "REVOKED", r.RevokedAt
	}
	return globalSignReply(http.StatusOK, struct {
		Certificate string `json:"certificate"`
		Status      string `json:"status"`
		UpdatedAt   int64  `json:"updated_at"`
	}{string(encodeCertificates(der)), status, a.sim.said(updated).Unix()})
}

// certificate is that of the path. As the serial number is the path, a wrong one means that the certificate has another.
func (a *globalsignAPI) certificate(c *call, o *order, r *request) ([]byte, error) {
	if serial := c.serial(r); serial != r.Serial {
		other := *r
		other.Serial = serial
		return a.sim.authority.sign(&other, a.sim.said(r.issuedAt(c.now)), defects{})
	}
	return a.sim.certificate(o, r.ID)
}

// rekey makes the same certificate for another key.
func (a *globalsignAPI) rekey(c *call) reply {
	var in struct {
		PublicKey          string `json:"public_key"`
		PublicKeySignature string `json:"public_key_signature"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	o, old, wrong, ok := a.find(c)
	if !ok {
		return wrong
	}
	if !old.RevokedAt.IsZero() {
		return a.problem(http.StatusUnprocessableEntity, "the certificate is revoked")
	}
	bad := complaints{}
	key := checkGlobalSignKey(in.PublicKey, in.PublicKeySignature, a.account().policy(), bad)
	if len(bad) > 0 {
		return a.invalid(c, bad)
	}
	r := c.newRequest("rekey")
	r.CSR, r.PublicKey = key.csr, key.public
	r.CommonName, r.Organization, r.ExtKeyUsages = old.CommonName, old.Organization, old.ExtKeyUsages
	r.DNSNames, r.IPAddresses, r.Emails, r.URIs = old.DNSNames, old.IPAddresses, old.Emails, old.URIs
	r.NotBefore, r.NotAfter = a.sim.said(c.now).Truncate(time.Second), old.NotAfter
	_, err := a.sim.store.update(GlobalSign, o.ID, func(o *order) error {
		o.Requests = append(o.Requests, r)
		return nil
	})
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return globalSignCreated(c, r.Serial)
}

// globalSignReasons are those that PATCH takes.
func globalSignReasons() []string {
	return []string{"unspecified", "affiliationChanged", "keyCompromise", "superseded", "cessationOfOperation", "privilegeWithdrawn"}
}

// revoke needs no approval.
func (a *globalsignAPI) revoke(c *call) reply {
	var in struct {
		Reason string `json:"revocation_reason"`
		Time   int64  `json:"revocation_time"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	bad := complaints{}
	if !slices.Contains(globalSignReasons(), in.Reason) {
		bad.add("revocation_reason", "%q is none of %v", in.Reason, globalSignReasons())
	}
	if in.Time < 0 || in.Time > a.sim.said(c.now).Unix() {
		bad.add("revocation_time", "%d is in the future", in.Time)
	}
	if len(bad) > 0 {
		c.violate("revocation: %v", map[string]string(bad))
		return globalSignProblem(http.StatusUnprocessableEntity, "request fields are invalid", bad)
	}
	return a.take(c, in.Reason)
}

// revokeOld is the deprecated way.
func (a *globalsignAPI) revokeOld(c *call) reply {
	c.violate("DELETE of a certificate is deprecated, PATCH takes its place")
	return a.take(c, "unspecified")
}

func (a *globalsignAPI) take(c *call, reason string) reply {
	o, r, wrong, ok := a.find(c)
	switch {
	case !ok && wrong.status == http.StatusAccepted:
		return a.problem(http.StatusUnprocessableEntity, "the certificate is not issued yet")
	case !ok:
		return wrong
	case !r.RevokedAt.IsZero():
		return a.problem(http.StatusUnprocessableEntity, "the certificate is revoked already")
	}
	_, err := a.sim.store.update(GlobalSign, o.ID, func(o *order) error {
		r, _ := o.serial(c.path("serial"))
		r.revoke(c.now, reason)
		return nil
	})
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return globalSignReply(http.StatusNoContent, nil)
}

// trustChain is the issuing CA first and the root last.
func (a *globalsignAPI) trustChain(c *call) reply {
	out := []string{}
	for _, der := range c.chain(nil, true) {
		if der != nil {
			out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		}
	}
	return globalSignReply(http.StatusOK, out)
}

package casimulator

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// digicertCertificate is the certificate of an order, re-issue or duplicate. Fields of type any are in the
// documentation, and nothing follows from them here.
type digicertCertificate struct {
	CommonName        string            `json:"common_name"`
	DNSNames          []string          `json:"dns_names"`
	CSR               string            `json:"csr"`
	SignatureHash     string            `json:"signature_hash"`
	ServerPlatform    any               `json:"server_platform"`
	OrganizationUnits []string          `json:"organization_units"`
	CACertID          any               `json:"ca_cert_id"`
	ProfileOption     string            `json:"profile_option"`
	CertValidity      *digicertValidity `json:"cert_validity"`
}

type digicertValidity struct {
	Years                int    `json:"years"`
	Days                 int    `json:"days"`
	CustomExpirationDate string `json:"custom_expiration_date"`
}

// digicertSubmission is an order (pages "Order OV/EV SSL", "Order Basic OV" and others).
type digicertSubmission struct {
	Certificate  digicertCertificate `json:"certificate"`
	Organization *struct {
		ID       int `json:"id"`
		Contacts any `json:"contacts"`
	} `json:"organization"`
	OrderValidity        *digicertValidity `json:"order_validity"`
	ValidityYears        int               `json:"validity_years"`
	ValidityDays         int               `json:"validity_days"`
	CustomExpirationDate string            `json:"custom_expiration_date"`
	Comments             string            `json:"comments"`
	SkipApproval         bool              `json:"skip_approval"`
	RenewalOfOrderID     int64             `json:"renewal_of_order_id"`
	Product              *struct {
		TypeHint string `json:"type_hint"`
	} `json:"product"`
	Container                   any    `json:"container"`
	PaymentMethod               string `json:"payment_method"`
	AutoRenew                   any    `json:"auto_renew"`
	AutoReissue                 any    `json:"auto_reissue"`
	DisableRenewalNotifications bool   `json:"disable_renewal_notifications"`
	DCVMethod                   string `json:"dcv_method"`
	CustomFields                any    `json:"custom_fields"`
	AdditionalEmails            any    `json:"additional_emails"`
	Locale                      string `json:"locale"`
	CustomRenewalMessage        string `json:"custom_renewal_message"`
	DisableCT                   any    `json:"disable_ct"`
}

// aboutOrder is what faults may ask of an order.
func (a *digicertAPI) aboutOrder(c *call) subject {
	var in struct {
		Certificate struct {
			CommonName string `json:"common_name"`
		} `json:"certificate"`
		Comments string `json:"comments"`
	}
	c.peek(&in)
	return subject{commonName: in.Certificate.CommonName, reference: in.Comments}
}

// submit places an order.
func (a *digicertAPI) submit(c *call) reply {
	var in digicertSubmission
	if err := c.decode(&in); err != nil {
		return digicertProblem(http.StatusBadRequest, "bad_request_format", err.Error())
	}
	product, ok := a.productOf(c, in)
	if !ok {
		c.violate("there is no product %q", c.path("product"))
		return a.notFound("product")
	}
	if wrong, ok := a.checkSubmission(c, in, product); !ok {
		return wrong
	}
	r, wrong, ok := a.certify(c, "new", in.Certificate, in.SkipApproval)
	if !ok {
		return wrong
	}
	until, err := in.validUntil(c.sim.said(c.now))
	if err != nil {
		return a.wrong(c, "invalid_order_validity", "%v", err) // ours
	}
	if err := r.setDigicertValidity(in.Certificate.CertValidity, c.sim.said(c.now), until); err != nil {
		return a.wrong(c, "invalid_cert_validity", "%v", err) // ours
	}
	return a.accept(c, in, product, r, until)
}

// accept stores the order and answers it.
func (a *digicertAPI) accept(c *call, in digicertSubmission, p digicertProduct, r request, until time.Time) reply {
	o := &order{
		CA: DigiCert, ID: c.sim.store.id(), Reference: in.Comments, Product: p.NameID, Accepted: c.now, Billed: 1,
		Requests:   []request{r},
		Actions:    []action{{ID: c.sim.store.id(), Type: "new_request", Request: r.ID, Comment: in.Comments, Asked: c.now}},
		Attributes: map[string]string{"order_valid_till": until.Format(digicertDate)},
	}
	if !in.SkipApproval {
		o.Attributes["approval"] = "account"
	}
	if in.RenewalOfOrderID != 0 {
		o.Attributes["renewal_of"] = strconv.FormatInt(in.RenewalOfOrderID, 10)
	}
	if err := c.accept(o); err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return a.accepted(c, o, in.SkipApproval)
}

// accepted answers an order, re-issue or duplicate. The number of the certificate is in it only when the approval of the account was
// skipped; there is no status (pages "Order Basic OV", "Reissue certificate").
func (a *digicertAPI) accepted(c *call, o *order, skipped bool) reply {
	r := o.newest()
	action := &o.Actions[len(o.Actions)-1]
	body := map[string]any{
		"id":       number(o.ID),
		"requests": []any{map[string]any{"id": number(action.ID), "status": o.status(action, c.now)}},
	}
	if skipped {
		body["certificate_id"] = number(r.ID)
	}
	if skipped && r.state(c.now) == Issued {
		der, err := c.sim.certificate(o, r.ID)
		if err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
		body["certificate_chain"] = digicertChain(c.chain(der, true))
	}
	return jsonReply(http.StatusCreated, body)
}

func digicertChain(ders [][]byte) []any {
	var chain []any
	for _, der := range ders {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			continue // we made it
		}
		chain = append(chain, map[string]string{
			"subject_common_name": certificate.Subject.CommonName, "pem": string(encodeCertificates(der)),
		})
	}
	return chain
}

// productOf is the product of an order; /order/certificate/ssl lets DigiCert choose one.
func (a *digicertAPI) productOf(c *call, in digicertSubmission) (digicertProduct, bool) {
	if c.path("product") != "ssl" {
		return findProduct(c.path("product"))
	}
	if in.Product != nil && strings.HasPrefix(in.Product.TypeHint, "ev") {
		return findProduct("ssl_ev_basic")
	}
	return findProduct("ssl_basic")
}

func (a *digicertAPI) checkSubmission(c *call, in digicertSubmission, p digicertProduct) (reply, bool) {
	switch {
	case p.GroupName != "dv_ssl_certificate" && in.Organization == nil:
		return a.wrong(c, "missing_required_field|organization", "organization is required for %s", p.NameID), false // ours
	case in.Organization != nil && in.Organization.ID != c.sim.Credentials().DigiCertOrganization:
		c.violate("there is no organization %d", in.Organization.ID)
		return a.notFound("organization"), false
	}
	if in.RenewalOfOrderID != 0 {
		if o, ok := a.sim.store.byID(DigiCert, strconv.FormatInt(in.RenewalOfOrderID, 10)); !ok || o.Requests[0].state(c.now) != Issued {
			return a.wrong(c, "invalid_renewal_of_order_id", "order %d cannot be renewed", in.RenewalOfOrderID), false // ours
		}
	}
	return reply{}, true
}

// certify makes a request of the certificate object. All names come from the JSON, and of the CSR only the key counts.
func (a *digicertAPI) certify(c *call, kind string, in digicertCertificate, skipApproval bool) (request, reply, bool) {
	switch {
	case in.CommonName == "":
		return request{}, a.wrong(c, "missing_required_field|common_name", "certificate.common_name is required"), false // ours
	case in.SignatureHash != "" && !knownHash(in.SignatureHash):
		return request{}, a.wrong(c, "invalid_signature_hash", "there is no signature_hash %q", in.SignatureHash), false // ours
	}
	csr, err := parseCSR(in.CSR)
	if err != nil {
		return request{}, a.wrong(c, "invalid_csr", "%v", err), false
	}
	r := c.newRequest(kind)
	r.CSR, r.CommonName, r.Organization, r.WholeDays = csr.Raw, in.CommonName, "Example Inc", true
	if !skipApproval && !r.Gate.Needed {
		r.wait(0)
	}
	seen := map[string]bool{}
	for _, name := range append([]string{in.CommonName}, in.DNSNames...) {
		if seen[name] {
			continue
		}
		seen[name] = true
		if net.ParseIP(name) != nil {
			r.IPAddresses = append(r.IPAddresses, name)
		} else {
			r.DNSNames = append(r.DNSNames, name)
		}
	}
	return r, reply{}, true
}

// validUntil is the end of what is paid for.
func (in digicertSubmission) validUntil(now time.Time) (time.Time, error) {
	v := in.OrderValidity
	if v == nil {
		v = &digicertValidity{Years: in.ValidityYears, Days: in.ValidityDays, CustomExpirationDate: in.CustomExpirationDate}
	}
	switch {
	case v.CustomExpirationDate != "":
		return lastSecond(v.CustomExpirationDate)
	case v.Days < 0 || v.Days > 3*365+1 || v.Years < 0 || v.Years > 3:
		return time.Time{}, errors.New("order_validity is longer than three years")
	case v.Days > 0:
		return now.AddDate(0, 0, v.Days), nil
	case v.Years > 0:
		return now.AddDate(v.Years, 0, 0), nil
	}
	return time.Time{}, errors.New("order_validity is required")
}

// setDigicertValidity sets how long a certificate lives: as asked, else as long as the order and the rules for public CAs
// allow.
func (r *request) setDigicertValidity(v *digicertValidity, now, orderUntil time.Time) error {
	if v == nil || *v == (digicertValidity{}) {
		r.Days = min(digicertMaxDays, int(orderUntil.Sub(now)/(24*time.Hour))+1)
		return nil
	}
	days := v.Days + 365*v.Years
	if v.CustomExpirationDate != "" {
		end, err := lastSecond(v.CustomExpirationDate)
		if err != nil {
			return err
		}
		r.NotAfter = end
		days = int(end.Sub(now)/(24*time.Hour)) + 1
	}
	if days < 1 || days > digicertMaxDays {
		return errors.New("cert_validity is not between 1 and " + strconv.Itoa(digicertMaxDays) + " days")
	}
	r.Days = days
	return nil
}

func lastSecond(date string) (time.Time, error) {
	day, err := time.Parse(digicertDate, date)
	if err != nil {
		return time.Time{}, errors.New("custom_expiration_date is not of the form yyyy-MM-dd")
	}
	return day.Add(24*time.Hour - time.Second), nil
}

// digicertReissue is a re-issue or a duplicate.
type digicertReissue struct {
	Certificate  digicertCertificate `json:"certificate"`
	Comments     string              `json:"comments"`
	SkipApproval bool                `json:"skip_approval"`
	DCVMethod    string              `json:"dcv_method"`
	Locale       string              `json:"locale"`
}

// reissue asks for a certificate that replaces the one of the order, under a number of its own (page "Reissue
// certificate").
func (a *digicertAPI) reissue(c *call) reply { return a.another(c, "reissue") }

// duplicate asks for a copy with another key (page "Duplicate certificate").
func (a *digicertAPI) duplicate(c *call) reply { return a.another(c, "duplicate") }

func (a *digicertAPI) another(c *call, kind string) reply {
	var in digicertReissue
	if err := c.decode(&in); err != nil {
		return digicertProblem(http.StatusBadRequest, "bad_request_format", err.Error())
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound("order")
	}
	// Nothing can be issued again before it was issued; the code is ours.
	if o.Requests[0].state(c.now) != Issued || a.orderStatus(c.now, o) == "revoked" {
		return digicertProblem(http.StatusBadRequest, "order_not_issued", "The order is "+a.orderStatus(c.now, o)+".")
	}
	r, wrong, ok := a.certify(c, kind, in.Certificate, in.SkipApproval)
	if !ok {
		return wrong
	}
	until, err := lastSecond(o.Attributes["order_valid_till"])
	if err == nil {
		err = r.setDigicertValidity(in.Certificate.CertValidity, c.sim.said(c.now), until)
	}
	if err != nil {
		return a.wrong(c, "invalid_cert_validity", "%v", err) // ours
	}
	asked := action{ID: c.sim.store.id(), Type: kind, Request: r.ID, Comment: in.Comments, Asked: c.now}
	changed, err := c.sim.store.update(DigiCert, o.ID, func(o *order) error {
		if r, waits := pending(c.now, o); waits && r.Kind == kind {
			return &badControl{"The order has a pending " + kind + "."} // since a moment ago
		}
		o.Requests = append(o.Requests, r)
		o.Actions = append(o.Actions, asked)
		return nil
	})
	if err != nil {
		return digicertProblem(http.StatusBadRequest, kind+"_pending", err.Error()) // ours
	}
	return a.accepted(c, changed, in.SkipApproval)
}

// csrPEM is the request as it was sent.
func (r *request) csrPEM() string {
	if r.CSR == nil {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR}))
}

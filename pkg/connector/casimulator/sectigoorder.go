package casimulator

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// sectigoEnrolment is the body of enroll. Fields of type any are documented, and nothing follows from them here.
type sectigoEnrolment struct {
	OrgID             int             `json:"orgId"`
	CSR               string          `json:"csr"`
	CertType          int             `json:"certType"`
	Term              int             `json:"term"`
	SubjAltNames      string          `json:"subjAltNames"`
	NumberServers     int             `json:"numberServers"`
	ServerType        int             `json:"serverType"`
	Comments          string          `json:"comments"`
	CustomFields      json.RawMessage `json:"customFields"`
	ExternalRequester string          `json:"externalRequester"`
	DCVMode           any             `json:"dcvMode"`
	DCVEmail          any             `json:"dcvEmail"`
	UseSecondaryOrg   any             `json:"useSecondaryOrgName"`
}

// maxComments is the documented length of comments.
const maxComments = 1024

func (a *sectigoAPI) aboutEnrol(c *call) subject {
	var in struct {
		CSR      string `json:"csr"`
		Comments string `json:"comments"`
	}
	c.peek(&in)
	about := subject{reference: in.Comments}
	if csr, err := parseCSR(in.CSR); err == nil {
		about.commonName = commonName(csr)
	}
	return about
}

// commonName of a request; without one the first name stands in.
func commonName(csr *x509.CertificateRequest) string {
	switch {
	case csr.Subject.CommonName != "":
		return csr.Subject.CommonName
	case len(csr.DNSNames) > 0:
		return csr.DNSNames[0]
	}
	return ""
}

// enrol places an order.
func (a *sectigoAPI) enrol(c *call) reply {
	var in sectigoEnrolment
	if err := c.decode(&in); err != nil {
		return sectigoProblem(http.StatusBadRequest, sectigoField, err.Error())
	}
	profile, ok := a.profile(in.CertType)
	switch {
	case in.OrgID != c.sim.Credentials().SectigoOrganization:
		return a.wrong(c, sectigoDenied, "organisation %d is not accessible", in.OrgID)
	case !ok:
		return a.wrong(c, sectigoProfile, "The certificate profile id %d is invalid.", in.CertType)
	case !slices.Contains(profile.Terms, in.Term):
		return a.wrong(c, sectigoTerm, "The term %d is invalid.", in.Term)
	case len(in.Comments) > maxComments:
		return a.wrong(c, sectigoField, "comments is longer than %d", maxComments)
	}
	csr, err := parseCSR(in.CSR)
	if err != nil {
		return a.wrong(c, sectigoInvalidCSR, "%v", err)
	}
	r := c.newRequest("new")
	if err := r.certify(csr, "", splitNames(in.SubjAltNames)); err != nil {
		return a.wrong(c, sectigoInvalidCSR, "%v", err)
	}
	r.Days = in.Term
	o := &order{
		CA: Sectigo, ID: c.sim.store.id(), Reference: in.Comments, Product: strconv.Itoa(in.CertType), Accepted: c.now, Billed: 1, Requests: []request{r},
		Attributes: map[string]string{
			"org": strconv.Itoa(in.OrgID), "comments": in.Comments, "external_requester": in.ExternalRequester, "custom_fields": string(in.CustomFields),
		},
	}
	return a.accept(c, o)
}

func (a *sectigoAPI) accept(c *call, o *order) reply {
	if err := c.accept(o); err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return sectigoReply(http.StatusOK, map[string]any{"sslId": number(o.ID), "renewId": "renew-" + o.ID})
}

func splitNames(text string) []string {
	var names []string
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// certify sets key and names. The common name is the CSR's, and alternative names are those given, or the CSR's if none are.
// Whether the real service takes a CSR without a common name is not known; here the first name stands in.
func (r *request) certify(csr *x509.CertificateRequest, name string, alternative []string) error {
	r.CSR, r.Organization, r.WholeDays = csr.Raw, "Example Inc", true
	r.DNSNames, r.IPAddresses = nil, nil
	if len(alternative) == 0 {
		alternative = slices.Clone(csr.DNSNames)
		for _, ip := range csr.IPAddresses {
			alternative = append(alternative, ip.String())
		}
	}
	if r.CommonName = name; name == "" {
		r.CommonName = commonName(csr)
	}
	if r.CommonName == "" && len(alternative) > 0 {
		r.CommonName = alternative[0]
	}
	if r.CommonName == "" {
		return errors.New("CSR: there is no name in it")
	}
	seen := map[string]bool{}
	for _, name := range append([]string{r.CommonName}, alternative...) {
		switch {
		case seen[name]:
		case net.ParseIP(name) != nil:
			r.IPAddresses = append(r.IPAddresses, name)
		default:
			r.DNSNames = append(r.DNSNames, name)
		}
		seen[name] = true
	}
	return nil
}

// sectigoReplacement is the body of replace.
type sectigoReplacement struct {
	CSR                     string   `json:"csr"`
	Reason                  string   `json:"reason"`
	CommonName              string   `json:"commonName"`
	SubjectAlternativeNames []string `json:"subjectAlternativeNames"`
	DCVMode                 any      `json:"dcvMode"`
	DCVEmail                any      `json:"dcvEmail"`
}

// replace asks for another certificate under the same sslId.
func (a *sectigoAPI) replace(c *call) reply {
	var in sectigoReplacement
	if err := c.decode(&in); err != nil {
		return sectigoProblem(http.StatusBadRequest, sectigoField, err.Error())
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound()
	}
	if status := sectigoStatus(c.now, o); status != "Issued" {
		return sectigoProblem(http.StatusBadRequest, sectigoNotIssued, "Only issued certificates can be replaced; it is "+status+".")
	}
	csr, err := parseCSR(in.CSR)
	if err != nil {
		return a.wrong(c, sectigoInvalidCSR, "%v", err)
	}
	r := c.newRequest("replace")
	if err := r.certify(csr, in.CommonName, in.SubjectAlternativeNames); err != nil {
		return a.wrong(c, sectigoInvalidCSR, "%v", err)
	}
	r.Days = o.newest().Days
	if _, err := c.sim.store.update(Sectigo, o.ID, func(o *order) error {
		o.Requests = append(o.Requests, r)
		return nil
	}); err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return reply{status: http.StatusNoContent}
}

// renew orders the same certificate again, under a new sslId. The guide has no body for it; clients send an empty one, {} or "".
func (a *sectigoAPI) renew(c *call) reply {
	if body := strings.TrimSpace(string(c.body)); body != "" && body != "{}" && body != `""` {
		return a.wrong(c, sectigoField, "renewal takes nothing")
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound()
	}
	if status := sectigoStatus(c.now, o); status != "Issued" {
		return sectigoProblem(http.StatusBadRequest, sectigoNotIssued, "Only issued certificates can be renewed; it is "+status+".")
	}
	old := o.newest()
	r := c.newRequest("new")
	r.CSR, r.CommonName, r.Organization, r.WholeDays, r.Days = old.CSR, old.CommonName, old.Organization, true, old.Days
	r.DNSNames, r.IPAddresses = old.DNSNames, old.IPAddresses
	return a.accept(c, &order{
		CA: Sectigo, ID: c.sim.store.id(), Reference: o.Reference, Product: o.Product, Accepted: c.now, Billed: 1, Requests: []request{r},
		Attributes: o.Attributes,
	})
}

// update changes the comments of a certificate.
func (a *sectigoAPI) update(c *call) reply {
	var in struct {
		SSLID             int64           `json:"sslId"`
		Comments          *string         `json:"comments"`
		ExternalRequester *string         `json:"externalRequester"`
		CustomFields      json.RawMessage `json:"customFields"`
	}
	if err := c.decode(&in); err != nil {
		return sectigoProblem(http.StatusBadRequest, sectigoField, err.Error())
	}
	o, err := c.sim.store.update(Sectigo, strconv.FormatInt(in.SSLID, 10), func(o *order) error {
		if in.Comments != nil {
			o.set("comments", *in.Comments)
		}
		if in.ExternalRequester != nil {
			o.set("external_requester", *in.ExternalRequester)
		}
		if in.CustomFields != nil {
			o.set("custom_fields", string(in.CustomFields))
		}
		return nil
	})
	if err != nil {
		return a.notFound()
	}
	return sectigoReply(http.StatusOK, a.details(c, o))
}

// decide approves or declines what waits.
func (a *sectigoAPI) decide(approve bool) func(*call) reply {
	return func(c *call) reply {
		var in struct {
			Message string `json:"message"`
		}
		if err := c.decode(&in); err != nil {
			return sectigoProblem(http.StatusBadRequest, sectigoField, err.Error())
		}
		o, ok := a.find(c)
		if !ok {
			return a.notFound()
		}
		_, err := c.sim.store.update(Sectigo, o.ID, func(o *order) error {
			r := o.newest()
			if state := r.state(c.now); state != Waiting {
				return fmt.Errorf("certificate can't be approved or declined cause it has state = %s", sectigoStatus(c.now, o))
			}
			if approve {
				r.Gate.ApprovedAt = c.now
				return nil
			}
			r.Gate.RejectedAt, r.Gate.Reason = c.now, in.Message
			return nil
		})
		if err != nil {
			return sectigoProblem(http.StatusBadRequest, sectigoApproval, err.Error())
		}
		return reply{status: http.StatusNoContent}
	}
}

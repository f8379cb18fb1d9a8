package casimulator

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// gatewayEnrollmentRequest is the body of POST enrollments.
type gatewayEnrollmentRequest struct {
	ProfileID      string `json:"profileId"`
	RequiredFormat struct {
		Format     string `json:"format"`
		Protection *struct {
			Type     string `json:"type"`
			Password string `json:"password"`
		} `json:"protection"`
	} `json:"requiredFormat"`
	CSR                               string                `json:"csr"`
	SubjectVariables                  []gatewayTyped        `json:"subjectVariables"`
	SubjectAltNames                   []gatewayTyped        `json:"subjectAltNames"`
	OptionalCertificateRequestDetails gatewayRequestDetails `json:"optionalCertificateRequestDetails"`
	IncludeCA                         bool                  `json:"includeCa"`
	Renewal                           bool                  `json:"renewal"`
	PreviousSubjectDN                 string                `json:"previousSubjectDn"`
	Properties                        map[string]string     `json:"properties"`
}

type gatewayTyped struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type gatewayRequestDetails struct {
	SubjectDN                 string `json:"subjectDn"`
	UseSANFromCSR             bool   `json:"useSANFromCSR"`
	ValidityPeriod            string `json:"validityPeriod"`
	PrivateKeyUsagePercentage int    `json:"privateKeyUsagePercentage"`
	ForceIssuance             bool   `json:"forceIssuance"`
	PerformPOP                bool   `json:"performPOP"`
}

// gatewayEnrollment is the answer.
type gatewayEnrollment struct {
	ID             string               `json:"id"`
	Status         string               `json:"status"`
	SerialNumber   string               `json:"serialNumber,omitempty"`
	SubjectName    string               `json:"subjectName,omitempty"`
	IssuerName     string               `json:"issuerName,omitempty"`
	ValidityPeriod string               `json:"validityPeriod,omitempty"`
	Body           string               `json:"body,omitempty"`
	Chain          []gatewayCertificate `json:"chain,omitempty"`
	Properties     map[string]string    `json:"properties,omitempty"`
}

// gatewayTracking is the property that holds the client's own reference.
const gatewayTracking = "tracking.trackingInfo"

// about is what faults may ask of a submission.
func (a *entrustgatewayAPI) about(c *call) subject {
	var in gatewayEnrollmentRequest
	c.peek(&in)
	r := request{}
	_, _ = in.subject(&r) // what is wrong with it is said later
	return subject{commonName: r.CommonName, reference: in.Properties[gatewayTracking]}
}

// enroll accepts a request, and gives the certificate with the answer when it is made at once.
func (a *entrustgatewayAPI) enroll(c *call) reply {
	var in gatewayEnrollmentRequest
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	r := request{}
	if target, err := a.fill(c, &in, &r); err != nil {
		return a.invalid(c, target, err.Error())
	}
	hold := c.newRequest("new")
	r.ID, r.Kind, r.Accepted, r.Serial, r.Gate, r.Latency = hold.ID, hold.Kind, hold.Accepted, hold.Serial, hold.Gate, hold.Latency
	o := &order{
		CA: EntrustGateway, ID: r.ID, Reference: in.Properties[gatewayTracking], Product: in.ProfileID, Accepted: c.now, Billed: 1,
		Attributes: gatewayAttributes(in), Requests: []request{r},
	}
	if err := c.accept(o); err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return a.enrollment(c, o, http.StatusCreated)
}

// gatewayAttributes keeps of a request what its answers depend on.
func gatewayAttributes(in gatewayEnrollmentRequest) map[string]string {
	kept := map[string]string{"format": strings.ToUpper(in.RequiredFormat.Format)}
	if in.IncludeCA {
		kept["include_ca"] = "true"
	}
	for name, value := range in.Properties {
		kept["property:"+name] = value
	}
	return kept
}

// fill judges a request and writes what is to be certified. An error is about the field that is named.
func (a *entrustgatewayAPI) fill(c *call, in *gatewayEnrollmentRequest, r *request) (target string, err error) {
	profile, ok := a.profile(in.ProfileID)
	if !ok {
		return "profileId", fmt.Errorf("there is no profile %q", in.ProfileID)
	}
	switch format := strings.ToUpper(in.RequiredFormat.Format); {
	case in.RequiredFormat.Format == "":
		return "requiredFormat.format", fmt.Errorf("missing")
	case format == "PKCS12" && in.CSR != "":
		return "requiredFormat.format", fmt.Errorf("PKCS12 is for keys that the CA makes, and there is a CSR")
	case format != "X509" && format != "PEM":
		return "requiredFormat.format", fmt.Errorf("%q is not supported here; there are X509 and PEM", in.RequiredFormat.Format)
	}
	for name := range in.Properties {
		if !slices.ContainsFunc(profile.RequestedProperties, func(p gatewayRequirement) bool { return p.Name == name }) {
			return "properties", fmt.Errorf("profile %s has no property %q", profile.ID, name)
		}
	}
	if err := in.key(r); err != nil {
		return "csr", err
	}
	if target, err := in.subject(r); err != nil {
		return target, err
	}
	if r.CommonName == "" {
		return "subjectVariables", fmt.Errorf("profile %s requires cn", profile.ID)
	}
	if err := in.names(r); err != nil {
		return "subjectAltNames", err
	}
	if profile.ID != a.sim.Credentials().EntrustGatewayProfile {
		r.ExtKeyUsages = []string{"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
	}
	return "optionalCertificateRequestDetails.validityPeriod", in.validity(r, a.sim.said(c.now))
}

// key takes a CSR that is base64 of DER, without lines and without the header that PEM has.
func (in *gatewayEnrollmentRequest) key(r *request) error {
	if in.CSR == "" {
		return fmt.Errorf("missing; the simulator makes no keys")
	}
	if strings.Contains(in.CSR, "-----") {
		return fmt.Errorf("it has a PEM header; wanted is base64 of the DER alone")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(in.CSR)
	if err != nil || strings.ContainsAny(in.CSR, "\r\n") {
		return fmt.Errorf("it is not base64 in one line")
	}
	if _, err := checkCSR(der); err != nil {
		return err
	}
	r.CSR = der
	return nil
}

// subject is that of subjectDn, or else of the variables that the profile has.
func (in *gatewayEnrollmentRequest) subject(r *request) (target string, err error) {
	attributes := make([]dnAttribute, 0, len(in.SubjectVariables))
	for _, v := range in.SubjectVariables {
		if !strings.EqualFold(v.Type, "cn") && !strings.EqualFold(v.Type, "o") {
			return "subjectVariables", fmt.Errorf("the profile has no variable %q", v.Type)
		}
		attributes = append(attributes, dnAttribute{strings.ToUpper(v.Type), v.Value})
	}
	if dn := in.OptionalCertificateRequestDetails.SubjectDN; dn != "" {
		if attributes, err = parseDN(dn); err != nil {
			return "optionalCertificateRequestDetails.subjectDn", err
		}
	}
	for _, v := range attributes {
		switch v.Type {
		case "CN":
			r.CommonName = v.Value
		case "O":
			r.Organization = v.Value
		}
	}
	return "", nil
}

// names are the subject alternative names of the request, and those of the CSR if it says so.
func (in *gatewayEnrollmentRequest) names(r *request) error {
	for _, n := range in.SubjectAltNames {
		switch n.Type {
		case "dNSName":
			if n.Value == "" || net.ParseIP(n.Value) != nil || strings.ContainsAny(n.Value, " /:@") {
				return fmt.Errorf("%q is not a DNS name", n.Value)
			}
			r.DNSNames = append(r.DNSNames, n.Value)
		case "iPAddress":
			if net.ParseIP(n.Value) == nil {
				return fmt.Errorf("%q is not an IP address", n.Value)
			}
			r.IPAddresses = append(r.IPAddresses, n.Value)
		case "rfc822Name":
			r.Emails = append(r.Emails, n.Value)
		case "uniformResourceIdentifier":
			if u, err := url.Parse(n.Value); err != nil || u.Scheme == "" {
				return fmt.Errorf("%q is not a URI", n.Value)
			}
			r.URIs = append(r.URIs, n.Value)
		default:
			return fmt.Errorf("there is no type %q; there are dNSName, iPAddress, rfc822Name, uniformResourceIdentifier", n.Type)
		}
	}
	if in.OptionalCertificateRequestDetails.UseSANFromCSR {
		r.addNamesOfCSR()
	}
	return nil
}

// addNamesOfCSR certifies the subject alternative names of the CSR too.
func (r *request) addNamesOfCSR() {
	csr, err := checkCSR(r.CSR)
	if err != nil {
		return // it was judged before
	}
	add := func(to *[]string, name string) {
		if !slices.Contains(*to, name) {
			*to = append(*to, name)
		}
	}
	for _, n := range csr.DNSNames {
		add(&r.DNSNames, n)
	}
	for _, n := range csr.IPAddresses {
		add(&r.IPAddresses, n.String())
	}
	for _, n := range csr.EmailAddresses {
		add(&r.Emails, n)
	}
	for _, n := range csr.URIs {
		add(&r.URIs, n.String())
	}
}

// gatewayLongest is the longest validity that the profiles allow.
const gatewayLongest = 825 * 24 * time.Hour

func (in *gatewayEnrollmentRequest) validity(r *request, now time.Time) error {
	period := in.OptionalCertificateRequestDetails.ValidityPeriod
	if period == "" {
		return nil
	}
	notBefore, notAfter, err := validityWindow(period, now)
	switch {
	case err != nil:
		return err
	case !notAfter.After(notBefore) || !notAfter.After(now):
		return fmt.Errorf("%q is over before it begins", period)
	case notAfter.Sub(notBefore) > gatewayLongest:
		return fmt.Errorf("%q is longer than the %v that the profile allows", period, gatewayLongest)
	}
	r.NotBefore, r.NotAfter = notBefore.Truncate(time.Second), notAfter.Truncate(time.Second)
	return nil
}

// getEnrollment says how far an enrolment is.
func (a *entrustgatewayAPI) getEnrollment(c *call) reply {
	o, ok := c.visible(a.locate(c))
	if !ok {
		return a.problem(http.StatusNotFound, "there is no such enrollment")
	}
	return a.enrollment(c, o, http.StatusOK)
}

// enrollment answers with an order. Pending is the status of an answer without a certificate.
func (a *entrustgatewayAPI) enrollment(c *call, o *order, pending int) reply {
	r := &o.Requests[0]
	out := gatewayEnrollment{ID: o.ID, SubjectName: r.subjectName(), Status: "ACCEPTED", Properties: map[string]string{}}
	for name, value := range o.Attributes {
		if property, ok := strings.CutPrefix(name, "property:"); ok {
			out.Properties[property] = value
		}
	}
	message := &gatewayError{Code: "accepted", Message: "the enrollment waits"}
	status := pending
	switch r.state(c.now) {
	case Issued:
		status, message = http.StatusOK, nil
		if err := a.showCertificate(c, o, r, &out); err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
	case Rejected, Cancelled:
		out.Status = "REJECTED"
		message = &gatewayError{Code: "rejected", Message: r.Gate.Reason}
	case Waiting, Processing:
	}
	return jsonReply(status, struct {
		Type       string            `json:"type"`
		Enrollment gatewayEnrollment `json:"enrollment"`
		Message    *gatewayError     `json:"message,omitempty"`
	}{"EnrollmentResponse", out, message})
}

func (a *entrustgatewayAPI) showCertificate(c *call, o *order, r *request, out *gatewayEnrollment) error {
	der, err := a.sim.certificate(o, r.ID)
	if err != nil {
		return err
	}
	out.Status = "COMPLETED"
	out.SerialNumber = strings.ToLower(c.serial(r))
	out.IssuerName = a.sim.authority.intermediate.certificate.Subject.String()
	out.Body = encodeDER(der)
	if o.Attributes["format"] == "PEM" {
		out.Body = string(encodeCertificates(der))
	}
	if o.Attributes["include_ca"] != "" {
		out.Chain = gatewayChain(c.chain(der, true), der)
	}
	return nil
}

// subjectName writes the subject as Entrust does.
func (r *request) subjectName() string {
	name := "CN=" + r.CommonName
	if r.Organization != "" {
		name += ",O=" + r.Organization
	}
	return name
}

package casimulator

import (
	"encoding/base64"
	"net/http"
	"strings"
)

// entrustgatewayAPI is Entrust's CA Gateway, version 1, in front of one CA. What is published leaves open how an
// enrolment that waits is asked for. Here it is 201 with an id and no body, and GET enrollments/{id} answers with the
// same resource until there is one; its status is ACCEPTED, COMPLETED or REJECTED, which are the words that actions have.
type entrustgatewayAPI struct{ sim *Simulator }

func newEntrustGateway(s *Simulator) api { return &entrustgatewayAPI{sim: s} }

func (a *entrustgatewayAPI) name() string { return EntrustGateway }

func (a *entrustgatewayAPI) operations() []operation {
	op := func(name, method, path string, h func(*call) reply) operation {
		if strings.Contains(path, "{ca}") {
			h = a.ofCA(h)
		}
		return operation{name: name, method: method, path: "/v1/certificate-authorities" + path, clientCertificate: true, handle: h}
	}
	submit := op(opSubmit, http.MethodPost, "/{ca}/enrollments", a.enroll)
	submit.about = a.about
	return []operation{
		submit,
		op(opStatus, http.MethodGet, "/{ca}/enrollments/{id}", a.getEnrollment),
		op(opCollect, http.MethodGet, "/{ca}/certificates/{serial}", a.getCertificate),
		op(opRevoke, http.MethodPost, "/{ca}/certificates/{serial}/actions", a.act),
		op(opChanges, http.MethodGet, "/{ca}/certificate-events", a.events),
		op(opProfiles, http.MethodGet, "/{ca}/profiles", a.profiles),
		op(opProfiles, http.MethodGet, "/{ca}/profiles/{profile}", a.getProfile),
		op(opChain, http.MethodGet, "/{ca}", a.getCA),
		op(opProbe, http.MethodGet, "", a.listCAs),
	}
}

// gatewayError is how CA Gateway says that something is wrong.
type gatewayError struct {
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Target  string         `json:"target,omitempty"`
	Details []gatewayError `json:"details,omitempty"`
}

func (a *entrustgatewayAPI) problem(status int, message string) reply {
	return gatewayProblem(status, gatewayError{Message: message})
}

func (a *entrustgatewayAPI) refusal(status int, code, message string) reply {
	return gatewayProblem(status, gatewayError{Code: code, Message: message})
}

// gatewayProblem is an ErrorResponse; its code is the name of the status unless it is said.
func gatewayProblem(status int, e gatewayError) reply {
	if e.Code == "" {
		e.Code = strings.ReplaceAll(strings.ToLower(http.StatusText(status)), " ", "-")
	}
	return jsonReply(status, struct {
		Type  string       `json:"type"`
		Error gatewayError `json:"error"`
	}{"ErrorResponse", e})
}

// invalid refuses a field of a request.
func (a *entrustgatewayAPI) invalid(c *call, target, message string) reply {
	c.violate("%s: %s", target, message)
	return gatewayProblem(http.StatusBadRequest, gatewayError{
		Code: "invalid-request", Message: "the request is invalid", Target: target,
		Details: []gatewayError{{Code: "invalid-value", Message: message, Target: target}},
	})
}

// decode reads a body. It gives the answer to one that is wrong.
func (a *entrustgatewayAPI) decode(c *call, into any) (reply, bool) {
	if err := c.decode(into); err != nil {
		return gatewayProblem(http.StatusBadRequest, gatewayError{Code: "invalid-request", Message: err.Error()}), false
	}
	return reply{}, true
}

// ofCA lets through what is about the CA that is behind this gateway.
func (a *entrustgatewayAPI) ofCA(h func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		if id := c.path("ca"); id != a.sim.Credentials().EntrustGatewayCA {
			return c.refuse(http.StatusNotFound, "there is no certification authority %q", id)
		}
		return h(c)
	}
}

func (a *entrustgatewayAPI) locate(c *call) (*order, bool) {
	if id := c.path("id"); id != "" {
		return a.sim.store.byID(EntrustGateway, id)
	}
	return a.sim.store.bySerial(EntrustGateway, gatewaySerial(c.path("serial")))
}

// gatewaySerial brings a serial number of a path, which may have either case and leading zeros, into the store's form.
func gatewaySerial(text string) string {
	text = strings.ToUpper(strings.TrimLeft(text, "0"))
	return strings.Repeat("0", max(0, 2*serialBytes-len(text))) + text
}

// gatewayCA is the CA behind the gateway.
type gatewayCA struct {
	ID          string               `json:"id"`
	Name        string               `json:"name"`
	Properties  map[string]string    `json:"properties"`
	Certificate *gatewayCertificate  `json:"certificate,omitempty"`
	Chain       []gatewayCertificate `json:"chain,omitempty"`
}

func (a *entrustgatewayAPI) ca() gatewayCA {
	return gatewayCA{
		ID: a.sim.Credentials().EntrustGatewayCA, Name: "CA Simulator",
		Properties: map[string]string{
			"issuer_dn":      a.sim.authority.intermediate.certificate.Subject.String(),
			"connector_name": "com.entrust.SecurityManager", "type": "X509",
		},
	}
}

func (a *entrustgatewayAPI) listCAs(*call) reply {
	return jsonReply(http.StatusOK, struct {
		Type   string      `json:"type"`
		CAList []gatewayCA `json:"caList"`
	}{"CAListResponse", []gatewayCA{a.ca()}})
}

// getCA gives the certificate and the chain only to who asks for these fields.
func (a *entrustgatewayAPI) getCA(c *call) reply {
	ca := a.ca()
	chain := c.chain(nil, true)
	for field := range strings.SplitSeq(c.request.URL.Query().Get("$fields"), ",") {
		switch field {
		case "ca.certificate":
			ca.Certificate = &gatewayCertificate{CertificateData: encodeDER(a.sim.authority.intermediate.certificate.Raw)}
		case "ca.chain":
			ca.Chain = gatewayChain(chain, nil)
		}
	}
	return jsonReply(http.StatusOK, struct {
		Type string    `json:"type"`
		CA   gatewayCA `json:"ca"`
	}{"CAResponse", ca})
}

// gatewayChain writes the certificates of a chain other than the leaf.
func gatewayChain(ders [][]byte, leaf []byte) []gatewayCertificate {
	var out []gatewayCertificate
	for _, der := range ders {
		if der != nil && string(der) != string(leaf) {
			out = append(out, gatewayCertificate{CertificateData: encodeDER(der)})
		}
	}
	return out
}

func encodeDER(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

// gatewayProfile is a kind of certificate.
type gatewayProfile struct {
	ID                          string               `json:"id"`
	Name                        string               `json:"name"`
	Protocols                   []string             `json:"protocols"`
	SubjectVariableRequirements []gatewayRequirement `json:"subjectVariableRequirements"`
	SubjectAltNameRequirements  []gatewayRequirement `json:"subjectAltNameRequirements"`
	RequestedProperties         []gatewayRequirement `json:"requestedProperties"`
}

type gatewayRequirement struct {
	Name        string `json:"name,omitempty"`
	Type        string `json:"type,omitempty"`
	Description string `json:"description,omitempty"`
	Required    bool   `json:"required"`
}

func (a *entrustgatewayAPI) allProfiles() []gatewayProfile {
	tracking := []gatewayRequirement{
		{Name: "tracking.requesterName"}, {Name: "tracking.requesterEmail"}, {Name: "tracking.requesterPhone"},
		{Name: "tracking.trackingInfo"}, {Name: "tracking.additionalEmails"},
	}
	names := []gatewayRequirement{
		{Type: "dNSName"}, {Type: "iPAddress"}, {Type: "rfc822Name"}, {Type: "uniformResourceIdentifier"},
	}
	return []gatewayProfile{
		{
			ID: a.sim.Credentials().EntrustGatewayProfile, Name: "TLS server", Protocols: []string{"REST"},
			SubjectVariableRequirements: []gatewayRequirement{{Name: "cn", Required: true}, {Name: "o"}},
			SubjectAltNameRequirements:  names, RequestedProperties: tracking,
		},
		{
			ID: "tls-client-server", Name: "TLS server and client", Protocols: []string{"REST"},
			SubjectVariableRequirements: []gatewayRequirement{{Name: "cn", Required: true}, {Name: "o"}},
			SubjectAltNameRequirements:  names, RequestedProperties: tracking,
		},
	}
}

func (a *entrustgatewayAPI) profile(id string) (gatewayProfile, bool) {
	for _, p := range a.allProfiles() {
		if p.ID == id {
			return p, true
		}
	}
	return gatewayProfile{}, false
}

func (a *entrustgatewayAPI) profiles(*call) reply {
	return jsonReply(http.StatusOK, struct {
		Type     string           `json:"type"`
		Profiles []gatewayProfile `json:"profiles"`
	}{"ProfilesResponse", a.allProfiles()})
}

func (a *entrustgatewayAPI) getProfile(c *call) reply {
	p, ok := a.profile(c.path("profile"))
	if !ok {
		return c.refuse(http.StatusNotFound, "there is no profile %q", c.path("profile"))
	}
	return jsonReply(http.StatusOK, struct {
		Type    string         `json:"type"`
		Profile gatewayProfile `json:"profile"`
	}{"ProfileResponse", p})
}

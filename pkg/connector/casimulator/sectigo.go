package casimulator

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sectigoAPI is Sectigo Certificate Manager, SSL endpoints of the REST API, version 1, by its guide (25.11) and public clients
// (Keyfactor's sectigo-scm plugins, hm-edu/sectigo-client, EvotecIT/SectigoCertificateManager for codes of errors). OAuth is
// not simulated.
type sectigoAPI struct{ sim *Simulator }

const sectigoDate = "01/02/2006"

// Codes of errors, by the list in EvotecIT/SectigoCertificateManager.
const (
	sectigoProcessing     = 0
	sectigoInvalidCSR     = -10
	sectigoUnknownUser    = -16
	sectigoTerm           = -36
	sectigoDenied         = -37
	sectigoProfile        = -39
	sectigoNotIssued      = -102
	sectigoNotCollectable = -183
	sectigoApproval       = -1112
	sectigoFormat         = -1450
	sectigoField          = -1601
	sectigoMissing        = -5101
	sectigoGeneral        = -1 // ours, where no code is known
)

func newSectigo(s *Simulator) api { return &sectigoAPI{sim: s} }

func (a *sectigoAPI) name() string { return Sectigo }

// operations are there twice: below /api with a password, and below /private/api with a client certificate.
func (a *sectigoAPI) operations() []operation {
	ops := []operation{
		{name: opProfiles, method: "GET", path: "/types", handle: a.types},
		{name: opSubmit, method: "POST", path: "/enroll", about: a.aboutEnrol, handle: a.enrol},
		{name: opStatus, method: "GET", path: "/{id}", handle: a.detail},
		{name: opList, method: "GET", path: "", handle: a.list},
		{name: opOther, method: "PUT", path: "", handle: a.update},
		{name: opCollect, method: "GET", path: "/collect/{id}/{format}", handle: a.collect},
		{name: opCollect, method: "GET", path: "/collect/{id}", handle: a.collect},
		{name: opReissue, method: "POST", path: "/replace/{id}", handle: a.replace},
		{name: opRenew, method: "POST", path: "/renewById/{id}", handle: a.renew},
		{name: opRenew, method: "POST", path: "/renew/{renewal}", handle: a.renew},
		{name: opRevoke, method: "POST", path: "/revoke/{id}", handle: a.revoke},
		{name: opRevoke, method: "POST", path: "/revoke/serial/{serial}", handle: a.revoke},
		{name: opApprove, method: "POST", path: "/approve/{id}", handle: a.decide(true)},
		{name: opCancel, method: "POST", path: "/decline/{id}", handle: a.decide(false)},
	}
	var all []operation
	for _, op := range ops {
		path, handle := op.path, op.handle
		op.path, op.handle = "/api/ssl/v1"+path, a.authorised(true, handle)
		all = append(all, op)
		op.path, op.handle, op.clientCertificate = "/private/api/ssl/v1"+path, a.authorised(false, handle), true
		all = append(all, op)
	}
	return all
}

func sectigoReply(status int, v any) reply {
	r := jsonReply(status, v)
	if v != nil {
		r.header.Set("Content-Type", "application/json;charset=utf-8")
	}
	return r
}

func sectigoProblem(status, code int, description string) reply {
	return sectigoReply(status, map[string]any{"code": code, "description": description})
}

func (a *sectigoAPI) problem(status int, message string) reply {
	if status == http.StatusForbidden {
		return sectigoProblem(status, sectigoDenied, message)
	}
	return sectigoProblem(status, sectigoGeneral, message)
}

func (a *sectigoAPI) refusal(status int, code, message string) reply {
	if code == "" {
		return a.problem(status, message)
	}
	return sectigoProblem(status, atoi(code), message)
}

func (a *sectigoAPI) wrong(c *call, code int, format string, args ...any) reply {
	c.violate(format, args...)
	return sectigoProblem(http.StatusBadRequest, code, fmt.Sprintf(format, args...))
}

func (a *sectigoAPI) notFound() reply {
	return sectigoProblem(http.StatusNotFound, sectigoMissing, "Certificate not found.")
}

// authorised checks the headers that every call has.
func (a *sectigoAPI) authorised(password bool, handle func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		known := c.sim.Credentials()
		want := map[string]string{"login": known.SectigoLogin, "customerUri": known.SectigoCustomerURI}
		if password {
			want["password"] = known.SectigoPassword
		}
		for name, value := range want {
			if subtle.ConstantTimeCompare([]byte(c.request.Header.Get(name)), []byte(value)) != 1 {
				c.violate("header %s is missing or wrong", name)
				return sectigoProblem(http.StatusUnauthorized, sectigoUnknownUser, "Unknown user.")
			}
		}
		return handle(c)
	}
}

// locate finds an order by its sslId, or what else the path has.
func (a *sectigoAPI) locate(c *call) (*order, bool) {
	if serial := c.path("serial"); serial != "" {
		return a.sim.store.bySerial(Sectigo, strings.ToUpper(strings.ReplaceAll(serial, ":", "")))
	}
	if id, ok := strings.CutPrefix(c.path("renewal"), "renew-"); ok {
		return a.sim.store.byID(Sectigo, id)
	}
	return a.sim.store.byID(Sectigo, c.path("id"))
}

func (a *sectigoAPI) find(c *call) (*order, bool) {
	o, ok := a.locate(c)
	return c.visible(o, ok)
}

// sectigoStatus is how an order is in the words of the API.
func sectigoStatus(now time.Time, o *order) string {
	r := o.newest()
	switch r.state(now) {
	case Waiting:
		return "Requested"
	case Processing:
		return "Applied"
	case Rejected:
		if r.Gate.Needed && r.approvedAt(now).IsZero() {
			return "Declined" // by a human of the customer
		}
		return "Rejected" // by the CA
	case Cancelled:
		return "Declined"
	default:
		if r.RevokedAt.IsZero() {
			return "Issued"
		}
		return "Revoked"
	}
}

// sectigoType is a profile.
type sectigoType struct {
	ID                  int                 `json:"id"`
	Name                string              `json:"name"`
	Description         string              `json:"description"`
	Terms               []int               `json:"terms"`
	KeyTypes            map[string][]string `json:"keyTypes"`
	UseSecondaryOrgName bool                `json:"useSecondaryOrgName"`
}

func (a *sectigoAPI) profiles() []sectigoType {
	keys := map[string][]string{"RSA": {"2048", "3072", "4096"}, "EC": {"P-256", "P-384"}}
	id := a.sim.Credentials().SectigoCertType
	return []sectigoType{
		{ID: id, Name: "OV SSL", Description: "Organisation validated, any number of names", Terms: []int{30, 90, 199}, KeyTypes: keys},
		{ID: id + 1, Name: "EV SSL", Description: "Extended validation", Terms: []int{199}, KeyTypes: keys},
	}
}

func (a *sectigoAPI) types(c *call) reply {
	if organisation := c.request.URL.Query().Get("organizationId"); organisation != "" && organisation != strconv.Itoa(c.sim.Credentials().SectigoOrganization) {
		return sectigoReply(http.StatusOK, []sectigoType{}) // ours: what a foreign organisation gets is not known
	}
	return sectigoReply(http.StatusOK, a.profiles())
}

func (a *sectigoAPI) profile(id int) (sectigoType, bool) {
	for _, p := range a.profiles() {
		if p.ID == id {
			return p, true
		}
	}
	return sectigoType{}, false
}

// sectigoDetail is one certificate.
func (a *sectigoAPI) detail(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound()
	}
	return sectigoReply(http.StatusOK, a.details(c, o))
}

func (a *sectigoAPI) details(c *call, o *order) map[string]any {
	r := o.newest()
	profile, _ := a.profile(atoi(o.Product))
	d := map[string]any{
		"sslId": number(o.ID), "id": number(o.ID), "commonName": r.CommonName, "orgId": atoi(o.Attributes["org"]), "status": sectigoStatus(c.now, o),
		"orderNumber": number(r.ID), "backendCertId": r.ID, "vendor": "Sectigo", "certType": profile, "term": r.Days,
		"comments": o.Attributes["comments"], "externalRequester": o.Attributes["external_requester"], "requester": "simulator",
		"owner": "simulator", "requestedVia": "Web API", "requested": c.sim.said(r.Accepted).Format(sectigoDate),
		"subjectAlternativeNames": append(slices.Clone(r.DNSNames), r.IPAddresses...), "renewed": false, "suspendNotifications": false,
		"renewId": "renew-" + o.ID, "customFields": json.RawMessage(orEmptyList(o.Attributes["custom_fields"])),
	}
	if at := r.approvedAt(c.now); !at.IsZero() {
		d["approved"] = c.sim.said(at).Format(sectigoDate)
	}
	if state := r.state(c.now); state == Issued {
		_, end := r.validity(c)
		d["issued"], d["expires"] = c.sim.said(r.issuedAt(c.now)).Format(sectigoDate), end.Format(sectigoDate)
		d["serialNumber"] = colons(c.serial(r))
	}
	if at := r.rejectedAt(c.now); !at.IsZero() {
		d["declined"], d["reason"] = c.sim.said(at).Format(sectigoDate), r.Gate.Reason
	}
	if !r.RevokedAt.IsZero() {
		d["revoked"] = c.sim.said(r.RevokedAt).Format(sectigoDate)
	}
	return d
}

func orEmptyList(text string) string {
	if text == "" {
		return "[]"
	}
	return text
}

func atoi(text string) int {
	n, _ := strconv.Atoi(text) // we wrote it
	return n
}

// colons writes AB:CD:EF.
func colons(hexadecimal string) string {
	var parts []string
	for i := 0; i+2 <= len(hexadecimal); i += 2 {
		parts = append(parts, hexadecimal[i:i+2])
	}
	return strings.Join(parts, ":")
}

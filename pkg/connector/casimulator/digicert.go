package casimulator

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// digicertAPI is DigiCert CertCentral, Services API version 2, as dev.digicert.com documents it (error codes: page
// "Errors"). Codes that the documentation does not have are marked as ours.
type digicertAPI struct {
	sim    *Simulator
	limits *rollingLimits
}

const (
	digicertBase  = "/services/v2"
	digicertOrder = digicertBase + "/order/certificate"
	// digicertTime is how the API writes times, always in UTC.
	digicertTime = "2006-01-02T15:04:05-07:00"
	digicertDate = "2006-01-02"
	// digicertMaxDays is the longest life of a public certificate since 2026-03-15, less the day that counts double.
	digicertMaxDays = 199
)

func newDigiCert(s *Simulator) api {
	// Limits are per key, and there is one key (page "Rate limits").
	return &digicertAPI{sim: s, limits: &rollingLimits{limits: []rollingLimit{
		{number: 1000, within: 3 * time.Minute}, {number: 100, within: 5 * time.Second},
	}}}
}

func (a *digicertAPI) name() string { return DigiCert }

func (a *digicertAPI) operations() []operation {
	ops := []operation{
		{name: opSubmit, method: "POST", path: digicertOrder + "/{product}", about: a.aboutOrder, handle: a.submit},
		{name: opStatus, method: "GET", path: digicertOrder + "/{order}", handle: a.orderInfo},
		{name: opList, method: "GET", path: digicertOrder, handle: a.list},
		{name: opChanges, method: "GET", path: digicertOrder + "/status-changes", handle: a.changes},
		{name: opReissue, method: "POST", path: digicertOrder + "/{order}/reissue", handle: a.reissue},
		{name: opStatus, method: "GET", path: digicertOrder + "/{order}/reissue", handle: a.listOf("reissue")},
		{name: opReissue, method: "POST", path: digicertOrder + "/{order}/duplicate", handle: a.duplicate},
		{name: opStatus, method: "GET", path: digicertOrder + "/{order}/duplicate", handle: a.listOf("duplicate")},
		{name: opCancel, method: "PUT", path: digicertOrder + "/{order}/status", handle: a.cancel},
		{name: opRevoke, method: "PUT", path: digicertOrder + "/{order}/revoke", handle: a.revokeOrder},
		{name: opRevoke, method: "PUT", path: digicertBase + "/certificate/{certificate}/revoke", handle: a.revokeCertificate},
		{name: opCollect, method: "GET", path: digicertBase + "/certificate/{certificate}/download/format/{format}", handle: a.download},
		{name: opCollect, method: "GET", path: digicertBase + "/certificate/download/order/{order}/format/{format}", handle: a.download},
		{name: opChain, method: "GET", path: digicertBase + "/certificate/{certificate}/chain", handle: a.chainOf},
		{name: opApprove, method: "PUT", path: digicertBase + "/request/{request}/status", handle: a.decideRequest},
		{name: opStatus, method: "GET", path: digicertBase + "/request/{request}", handle: a.requestInfo},
		{name: opList, method: "GET", path: digicertBase + "/request", handle: a.listRequests},
		{name: opProbe, method: "GET", path: digicertBase + "/user/me", handle: a.me},
		{name: opProfiles, method: "GET", path: digicertBase + "/organization", handle: a.organizations},
		{name: opProfiles, method: "GET", path: digicertBase + "/organization/{organization}", handle: a.organization},
		{name: opProfiles, method: "GET", path: digicertBase + "/product", handle: a.products},
		{name: opProfiles, method: "GET", path: digicertBase + "/product/{product}", handle: a.product},
	}
	for i := range ops {
		ops[i].handle = a.authorised(ops[i].handle)
	}
	return ops
}

// digicertError is one entry of the error body.
type digicertError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func digicertProblem(status int, code, message string) reply {
	return jsonReply(status, map[string][]digicertError{"errors": {{Code: code, Message: message}}})
}

func (a *digicertAPI) problem(status int, message string) reply {
	codes := map[int]string{
		http.StatusTooManyRequests: "request_limit_exceeded", http.StatusNotFound: "not_found|route",
		http.StatusForbidden: "access_denied|missing_permission", http.StatusBadRequest: "bad_request_format",
	}
	code, ok := codes[status]
	if !ok {
		code = "general_error" // ours
	}
	return digicertProblem(status, code, message)
}

func (a *digicertAPI) refusal(status int, code, message string) reply {
	if code == "" {
		return a.problem(status, message)
	}
	return digicertProblem(status, code, message)
}

// wrong refuses a request for a mistake in it.
func (a *digicertAPI) wrong(c *call, code, format string, args ...any) reply {
	c.violate(format, args...)
	return digicertProblem(http.StatusBadRequest, code, fmt.Sprintf(format, args...))
}

func (a *digicertAPI) notFound(what string) reply {
	return digicertProblem(http.StatusNotFound, "not_found|"+what, "The specified "+what+" was not found.")
}

// authorised checks the key and the rate limits before a call. The code of the 401 is ours.
func (a *digicertAPI) authorised(handle func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		key := c.request.Header.Get("X-DC-DEVKEY")
		if subtle.ConstantTimeCompare([]byte(key), []byte(c.sim.Credentials().DigiCertAPIKey)) != 1 {
			c.violate("header X-DC-DEVKEY is missing or wrong")
			return digicertProblem(http.StatusUnauthorized, "access_denied|invalid_api_key", "The API key is not valid.")
		}
		if !c.sim.unlimited() && !a.limits.take(c.now) {
			return c.refuse(http.StatusTooManyRequests, "Service unavailable, please limit request volume.")
		}
		return handle(c)
	}
}

// locate finds the order of a path: by its number, or that, the serial number or the thumbprint of a certificate.
func (a *digicertAPI) locate(c *call) (*order, bool) {
	if id := c.path("request"); id != "" {
		return a.sim.store.byAction(DigiCert, id)
	}
	if id := c.path("certificate"); id != "" {
		if o, ok := a.sim.store.byRequest(DigiCert, id); ok {
			return o, true
		}
		return a.sim.store.bySerial(DigiCert, strings.ToUpper(id))
	}
	id := c.path("order")
	if o, ok := a.sim.store.byID(DigiCert, id); ok {
		return o, true
	}
	id = strings.ToUpper(id)
	o, ok := a.sim.store.bySerial(DigiCert, id)
	if !ok {
		o, ok = a.sim.store.byThumbprint(DigiCert, id)
	}
	// Only the primary certificate leads to its order (page "Order info").
	if ok && (a.primary(c.now, o).Serial != id && (a.primary(c.now, o).DER == nil || thumbprint(a.primary(c.now, o).DER) != id)) {
		return nil, false
	}
	return o, ok
}

// find is locate for handlers: an order that the CA denies is not found.
func (a *digicertAPI) find(c *call) (*order, bool) {
	o, ok := a.locate(c)
	return c.visible(o, ok)
}

// primary is the certificate that an order stands for: the newest issued that is no duplicate, or the first.
func (a *digicertAPI) primary(now time.Time, o *order) *request {
	for i := len(o.Requests) - 1; i > 0; i-- {
		if r := &o.Requests[i]; r.Kind != "duplicate" && r.state(now) == Issued {
			return r
		}
	}
	return &o.Requests[0]
}

// pending is a certificate of the order that is asked for and neither there nor refused.
func pending(now time.Time, o *order) (*request, bool) {
	for i := len(o.Requests) - 1; i >= 0; i-- {
		if state := o.Requests[i].state(now); state == Waiting || state == Processing {
			return &o.Requests[i], true
		}
	}
	return nil, false
}

// orderStatus is the status of an order in the words of the API (page "Glossary", order status).
func (a *digicertAPI) orderStatus(now time.Time, o *order) string {
	first := &o.Requests[0]
	switch first.state(now) {
	case Waiting:
		if o.Attributes["approval"] == "account" {
			return "needs_approval"
		}
		return "pending"
	case Processing:
		return "processing"
	case Rejected:
		return "rejected"
	case Cancelled:
		return "canceled"
	default:
		return a.issuedOrderStatus(now, o)
	}
}

func (a *digicertAPI) issuedOrderStatus(now time.Time, o *order) string {
	if o.Attributes["revoked"] != "" {
		return "revoked"
	}
	if r, ok := pending(now, o); ok && r.Kind == "reissue" {
		return "reissue_pending"
	}
	return "issued"
}

// certificateStatus is that of one certificate.
func (a *digicertAPI) certificateStatus(now time.Time, r *request) string {
	switch r.state(now) {
	case Waiting, Processing:
		return "pending"
	case Rejected:
		return "rejected"
	case Cancelled:
		return "canceled"
	default:
		if r.RevokedAt.IsZero() {
			return "issued"
		}
		return "revoked"
	}
}

func number(id string) int64 {
	n, _ := strconv.ParseInt(id, 10, 64) // the store gives numbers only
	return n
}

// digicertProduct is one that can be ordered.
type digicertProduct struct {
	NameID    string `json:"name_id"`
	Name      string `json:"name"`
	Type      string `json:"type"`
	GroupName string `json:"group_name"`
}

func digicertProducts() []digicertProduct {
	ssl := func(id, name, group string) digicertProduct {
		return digicertProduct{NameID: id, Name: name, Type: "ssl_certificate", GroupName: group}
	}
	return []digicertProduct{
		ssl("ssl_basic", "Basic OV", "ssl_certificate"),
		ssl("ssl_securesite_flex", "Secure Site OV", "ssl_certificate"),
		ssl("ssl_securesite_pro", "Secure Site Pro SSL", "ssl_certificate"),
		ssl("ssl_plus", "Standard SSL", "ssl_certificate"),
		ssl("ssl_multi_domain", "Multi-Domain SSL", "ssl_certificate"),
		ssl("ssl_wildcard", "WildCard", "ssl_certificate"),
		ssl("ssl_ev_basic", "Basic EV", "ssl_certificate"),
		ssl("ssl_dv_geotrust_flex", "GeoTrust DV SSL", "dv_ssl_certificate"),
		ssl("ssl_dv_rapidssl", "RapidSSL Standard DV SSL Certificate", "dv_ssl_certificate"),
		ssl("private_ssl_plus", "Private SSL", "private_ssl_certificate"),
		ssl("private_ssl_multi_domain", "Private Multi-Domain SSL", "private_ssl_certificate"),
		ssl("private_ssl_flex", "Private SSL Flex", "private_ssl_certificate"),
	}
}

func findProduct(id string) (digicertProduct, bool) {
	for _, p := range digicertProducts() {
		if p.NameID == id {
			return p, true
		}
	}
	return digicertProduct{}, false
}

func (a *digicertAPI) me(c *call) reply {
	return jsonReply(http.StatusOK, map[string]any{
		"id": 1, "username": "simulator", "account": map[string]any{"id": 100}, "first_name": "CA", "last_name": "Simulator",
		"email": "simulator@example.com", "status": "active", "access_roles": []any{map[string]any{"id": 1, "name": "Administrator"}},
		"container": map[string]any{"id": 1, "name": "Simulator"},
	})
}

// requester is the user behind the one key.
func (a *digicertAPI) requester() map[string]any {
	return map[string]any{"id": 1, "first_name": "CA", "last_name": "Simulator", "email": "simulator@example.com"}
}

func (a *digicertAPI) organizationBody(c *call) map[string]any {
	return map[string]any{
		"id": c.sim.Credentials().DigiCertOrganization, "status": "active", "name": "Example Inc", "display_name": "Example Inc", "is_active": true,
		"city": "Lehi", "state": "Utah", "country": "us", "container": map[string]any{"id": 1, "name": "Simulator"},
	}
}

func (a *digicertAPI) organizations(c *call) reply {
	return jsonReply(http.StatusOK, map[string]any{
		"organizations": []any{a.organizationBody(c)}, "page": map[string]int{"total": 1, "limit": 0, "offset": 0},
	})
}

func (a *digicertAPI) organization(c *call) reply {
	if c.path("organization") != strconv.Itoa(c.sim.Credentials().DigiCertOrganization) {
		return a.notFound("organization")
	}
	return jsonReply(http.StatusOK, a.organizationBody(c))
}

func (a *digicertAPI) products(*call) reply {
	return jsonReply(http.StatusOK, map[string]any{"products": digicertProducts()})
}

func (a *digicertAPI) product(c *call) reply {
	p, ok := findProduct(c.path("product"))
	if !ok {
		return a.notFound("product")
	}
	return jsonReply(http.StatusOK, map[string]any{
		"name_id": p.NameID, "name": p.Name, "type": p.Type, "group_name": p.GroupName, "duration": "order_validity",
		"allowed_order_validity_years": []int{1, 2, 3}, "max_days": digicertMaxDays,
		"signature_hash_types": map[string]any{"allowed_hash_types": hashes(), "default_hash_type_id": "sha256"},
	})
}

func hashes() []map[string]string {
	return []map[string]string{{"id": "sha256", "name": "SHA-256"}, {"id": "sha384", "name": "SHA-384"}, {"id": "sha512", "name": "SHA-512"}}
}

func knownHash(name string) bool {
	return slices.Contains([]string{"sha256", "sha384", "sha512"}, name)
}

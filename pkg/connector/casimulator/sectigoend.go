package casimulator

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/smallstep/pkcs7"
)

// sectigoMaxPage is what a list has at most, and without a size. The guide does not say how much that is.
const sectigoMaxPage = 200

// sectigoFilters are the parameters of the list that are simulated.
func sectigoFilters() []string {
	return []string{"position", "size", "commonName", "subjectAlternativeName", "status", "serialNumber", "orgId", "sslTypeId", "externalRequester"}
}

// list has only the names of each certificate and its serial number; the number of all is in a header. How
// commonName is compared is not documented: here any part of the name will do.
func (a *sectigoAPI) list(c *call) reply {
	query := c.request.URL.Query()
	for name := range query {
		if !slices.Contains(sectigoFilters(), name) {
			return a.wrong(c, sectigoField, "there is no parameter %q", name)
		}
	}
	position, err := strconv.Atoi(orDefault(query.Get("position"), "0"))
	if err != nil || position < 0 {
		return a.wrong(c, sectigoField, "position is %q", query.Get("position"))
	}
	size, err := strconv.Atoi(orDefault(query.Get("size"), strconv.Itoa(sectigoMaxPage)))
	if err != nil || size < 0 {
		return a.wrong(c, sectigoField, "size is %q", query.Get("size"))
	}
	var found []*order
	until := c.listed()
	for _, o := range a.sim.store.all(Sectigo) {
		if !o.Forgotten && !o.Accepted.After(until) && a.passes(c, query.Get, o) {
			found = append(found, o)
		}
	}
	from := min(position, len(found))
	out := []any{}
	for _, o := range found[from:min(from+min(size, sectigoMaxPage), len(found))] {
		out = append(out, a.listed(c, o))
	}
	r := sectigoReply(http.StatusOK, out)
	r.header.Set("X-Total-Count", strconv.Itoa(len(found)))
	return r
}

func orDefault(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (a *sectigoAPI) listed(c *call, o *order) map[string]any {
	r := o.newest()
	item := map[string]any{
		"sslId": number(o.ID), "commonName": r.CommonName, "subjectAlternativeNames": append(slices.Clone(r.DNSNames), r.IPAddresses...),
	}
	if r.state(c.now) == Issued {
		item["serialNumber"] = colons(r.Serial)
	}
	return item
}

func (a *sectigoAPI) passes(c *call, want func(string) string, o *order) bool {
	r := o.newest()
	contains := func(have, part string) bool { return strings.Contains(strings.ToLower(have), strings.ToLower(part)) }
	is := func(name, have string) bool { return want(name) == "" || strings.EqualFold(want(name), have) }
	serial := strings.ReplaceAll(want("serialNumber"), ":", "")
	return contains(r.CommonName, want("commonName")) &&
		(want("subjectAlternativeName") == "" ||
			slices.ContainsFunc(r.DNSNames, func(n string) bool { return contains(n, want("subjectAlternativeName")) })) &&
		is("status", sectigoStatus(c.now, o)) && is("orgId", o.Attributes["org"]) && is("sslTypeId", o.Product) &&
		is("externalRequester", o.Attributes["external_requester"]) &&
		(serial == "" || strings.EqualFold(serial, r.Serial) && r.state(c.now) == Issued)
}

// collect gives the certificate. What is not issued is a bad request, with code 0 while it still may be.
func (a *sectigoAPI) collect(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound()
	}
	format := c.path("format")
	if format == "" {
		format = orDefault(c.request.URL.Query().Get("format"), "base64")
	}
	r := o.newest()
	switch r.state(c.now) {
	case Waiting, Processing:
		return sectigoProblem(http.StatusBadRequest, sectigoProcessing, "Being processed by Sectigo")
	case Rejected, Cancelled:
		return sectigoProblem(http.StatusBadRequest, sectigoNotCollectable, "The certificate is not collectable.")
	default:
	}
	der, err := c.sim.certificate(o, r.ID)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return a.format(c, der, format)
}

// format renders a certificate. Formats with a chain begin at the root, and at the leaf where the name says so: Lemur's
// plugin and InCommon's scripts show it for pem and x509IO, and hm-edu's client for x509R, whose first certificate it takes for
// the leaf.
func (a *sectigoAPI) format(c *call, leaf []byte, format string) reply {
	rootFirst := c.chain(leaf, true)
	wrong := !bytes.Equal(rootFirst[0], leaf) // a fault says so
	if !wrong {
		slices.Reverse(rootFirst)
	}
	authorities := func(ders [][]byte) [][]byte {
		return slices.DeleteFunc(slices.Clone(ders), func(der []byte) bool { return bytes.Equal(der, leaf) })
	}
	leafFirst := slices.Clone(rootFirst)
	slices.Reverse(leafFirst)
	switch format {
	case "x509", "pem":
		return sectigoPEM(rootFirst)
	case "x509R", "pemia":
		if wrong {
			return sectigoPEM(rootFirst)
		}
		return sectigoPEM(leafFirst)
	case "x509CO", "pemco":
		return sectigoPEM([][]byte{leaf})
	case "x509IO":
		return sectigoPEM(authorities(rootFirst))
	case "x509IOR":
		return sectigoPEM(authorities(leafFirst))
	case "base64", "bin":
		return a.bundle(leafFirst, format == "base64")
	case "pkcs12":
		return sectigoProblem(http.StatusBadRequest, sectigoNotCollectable, "There is no private key.")
	}
	return a.wrong(c, sectigoFormat, "Unsupported certificate format specified: %s", format)
}

func sectigoPEM(ders [][]byte) reply {
	return attachment("application/x-pem-file", encodeCertificates(ders...))
}

func (a *sectigoAPI) bundle(chain [][]byte, armoured bool) reply {
	bundle, err := pkcs7.DegenerateCertificate(bytes.Join(chain, nil))
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	if armoured {
		bundle = pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: bundle})
	}
	return attachment("application/x-pkcs7-certificates", bundle)
}

// sectigoRevocation is the body of revoke. reasonCode is a number in some clients and a string in others.
type sectigoRevocation struct {
	ReasonCode any    `json:"reasonCode"`
	Reason     string `json:"reason"`
}

// maxReason is the documented length of reason.
const maxReason = 512

func (a *sectigoAPI) revoke(c *call) reply {
	var in sectigoRevocation
	if err := c.decode(&in); err != nil {
		return sectigoProblem(http.StatusBadRequest, sectigoField, err.Error())
	}
	code := "0"
	if in.ReasonCode != nil {
		code = fmt.Sprint(in.ReasonCode)
	}
	if !slices.Contains([]string{"0", "1", "3", "4", "5"}, code) {
		return a.wrong(c, sectigoField, "reasonCode is %s", code)
	}
	if len(in.Reason) > maxReason {
		return a.wrong(c, sectigoField, "reason is longer than %d", maxReason)
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound()
	}
	_, err := c.sim.store.update(Sectigo, o.ID, func(o *order) error {
		r := o.newest()
		if serial := c.path("serial"); serial != "" {
			r, _ = o.serial(strings.ToUpper(strings.ReplaceAll(serial, ":", "")))
		}
		if r.state(c.now) != Issued || !r.RevokedAt.IsZero() {
			return &badControl{"Only issued certificates can be revoked."} // hm-edu's client takes it for revoked already
		}
		r.revoke(c.now, code)
		return nil
	})
	if err != nil {
		return sectigoProblem(http.StatusBadRequest, sectigoNotIssued, err.Error())
	}
	return reply{status: http.StatusNoContent}
}

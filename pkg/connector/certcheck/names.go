// Package certcheck decides whether names, a certificate signing request and an issued certificate are what they
// were meant to be. It is the gate on both sides of every CA: nothing is sent that was not asked for, and nothing
// is stored that was not sent for.
//
// ParseNames brings wanted names into their one canonical form, CheckCSR holds a request against them, and
// CheckIssued holds against them what a CA answered. Names are compared in canonical form only.
package certcheck

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"

	"github.com/certctl/certctl/pkg/errs"
)

// MaxNames bounds the subject alternative names of one certificate. Public CAs stop at 100 to 250.
const MaxNames = 250

// maxCommonName is ub-common-name of RFC 5280, appendix A.1.
const maxCommonName = 64

// RawNames are names as somebody wrote them.
type RawNames struct {
	CommonName     string
	DNSNames       []string
	IPAddresses    []string
	EmailAddresses []string
	URIs           []string
}

// Names are the subject common name and the subject alternative names of a certificate in canonical form: DNS
// names lower-case and as A-labels, IPv4 never mapped into IPv6, no name twice. ParseNames makes them.
type Names struct {
	// CommonName is empty or the canonical form of one of the names below.
	CommonName     string
	DNSNames       []string
	IPAddresses    []netip.Addr
	EmailAddresses []string
	URIs           []string
}

// ParseNames validates names and brings them into canonical form. Repeated names are dropped, order is kept. The
// error is an errs.Invalid with one violation per bad name; fields are common_name, dns_names[i],
// ip_addresses[i], email_addresses[i] and uris[i], with i the index in the input.
func ParseNames(in RawNames) (Names, error) {
	var v errs.Violations
	if n := in.count(); n > MaxNames {
		v.Add("", "%d names are asked for: the most is %d", n, MaxNames)
		return Names{}, v.Err()
	}
	out := Names{
		DNSNames:       parseEach(&v, "dns_names", in.DNSNames, parseDNSName),
		IPAddresses:    parseEach(&v, "ip_addresses", in.IPAddresses, parseIP),
		EmailAddresses: parseEach(&v, "email_addresses", in.EmailAddresses, parseEmail),
		URIs:           parseEach(&v, "uris", in.URIs, parseURI),
	}
	if in.count() == 0 {
		v.Add("", "at least one of dns_names, ip_addresses, email_addresses and uris is needed")
	}
	// A common name is judged against the names, so it has to wait until those are right.
	if v.Len() == 0 {
		out.CommonName = parseCommonName(&v, in.CommonName, out)
	}
	if err := v.Err(); err != nil {
		return Names{}, err
	}
	return out, nil
}

// Raw gives the names as strings, for storage.
func (n Names) Raw() RawNames {
	return RawNames{
		CommonName:     n.CommonName,
		DNSNames:       slices.Clone(n.DNSNames),
		IPAddresses:    n.IPStrings(),
		EmailAddresses: slices.Clone(n.EmailAddresses),
		URIs:           slices.Clone(n.URIs),
	}
}

// IPStrings gives the IP addresses as text.
func (n Names) IPStrings() []string {
	out := make([]string, 0, len(n.IPAddresses))
	for _, ip := range n.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}

// URLs gives the URIs parsed, as x509.Certificate wants them.
func (n Names) URLs() ([]*url.URL, error) {
	out := make([]*url.URL, 0, len(n.URIs))
	for _, s := range n.URIs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, errs.Field("uris", "%q is no URI", s).Wrap(err)
		}
		out = append(out, u)
	}
	return out, nil
}

// Len counts the subject alternative names.
func (n Names) Len() int {
	return len(n.DNSNames) + len(n.IPAddresses) + len(n.EmailAddresses) + len(n.URIs)
}

// EqualSANs tells whether both hold the same subject alternative names, in any order. The common name does not
// count: it is always one of them or absent.
func (n Names) EqualSANs(o Names) bool {
	extra, missing := n.sans().compare(o.sans())
	return len(extra) == 0 && len(missing) == 0
}

func (in RawNames) count() int {
	return len(in.DNSNames) + len(in.IPAddresses) + len(in.EmailAddresses) + len(in.URIs)
}

// parseEach parses every entry of one list and drops repetitions.
func parseEach[T comparable](v *errs.Violations, field string, in []string, parse func(string) (T, error)) []T {
	var out []T
	for i, s := range in {
		got, err := parse(s)
		if err != nil {
			v.Add(fmt.Sprintf("%s[%d]", field, i), "%s", err.Error())
			continue
		}
		if !slices.Contains(out, got) {
			out = append(out, got)
		}
	}
	return out
}

// parseCommonName gives the canonical form of a common name, which must be one of the names: clients that look at
// the subject must see nothing that the alternative names do not say (CA/Browser Forum BR 7.1.4.3).
func parseCommonName(v *errs.Violations, cn string, names Names) string {
	if cn == "" {
		return ""
	}
	got, ok := names.canonicalCommonName(cn)
	switch {
	case !ok:
		v.Add("common_name", "%q is not among the subject alternative names: add it there too, or leave it out", cn)
	case len(got) > maxCommonName:
		v.Add("common_name", "has %d characters: a common name has at most %d; leave it out", len(got), maxCommonName)
	}
	return got
}

// canonicalCommonName finds the name that cn stands for.
func (n Names) canonicalCommonName(cn string) (string, bool) {
	if ip, err := parseIP(cn); err == nil && slices.Contains(n.IPAddresses, ip) {
		return ip.String(), true
	}
	if d, err := parseDNSName(cn); err == nil && slices.Contains(n.DNSNames, d) {
		return d, true
	}
	if e, err := parseEmail(cn); err == nil && slices.Contains(n.EmailAddresses, e) {
		return e, true
	}
	if u, err := parseURI(cn); err == nil && slices.Contains(n.URIs, u) {
		return u, true
	}
	return "", false
}

package certcheck

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxDNSName = 253  // RFC 1035, section 2.3.4, without the root's dot
	maxLabel   = 63   // RFC 1035, section 2.3.4
	maxEmail   = 254  // RFC 5321, section 4.5.3.1.3, without the angle brackets
	maxLocal   = 64   // RFC 5321, section 4.5.3.1.1
	maxURI     = 2048 // ours: longer ones break clients
	// minWildcardBase is how many labels follow "*": one would cover a whole top-level domain.
	minWildcardBase = 2
)

// parseDNSName gives the canonical form of a DNS name, which may have "*" as its leftmost label (RFC 5280, section
// 4.2.1.6; RFC 6125, section 6.4.3). Names beyond ASCII become A-labels (RFC 5891).
func parseDNSName(s string) (string, error) {
	base, wildcard := strings.CutPrefix(s, "*.")
	name, err := parseHost(base, s)
	if err != nil {
		return "", err
	}
	if !wildcard {
		return name, nil
	}
	if strings.Count(name, ".")+1 < minWildcardBase {
		return "", fmt.Errorf("%q is too wide: a wildcard needs at least %d labels after it", s, minWildcardBase)
	}
	if len(name)+2 > maxDNSName {
		return "", fmt.Errorf("is longer than the %d characters of a DNS name", maxDNSName)
	}
	return "*." + name, nil
}

// parseHost gives the canonical form of a host name. shown is what the user wrote, for messages.
func parseHost(s, shown string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("is empty: give a DNS name")
	case len(s) > 4*maxDNSName:
		return "", fmt.Errorf("is longer than the %d characters of a DNS name", maxDNSName)
	case strings.HasSuffix(s, "."):
		return "", fmt.Errorf("%q ends in a dot: leave that out", shown)
	case strings.Contains(s, "*"):
		return "", fmt.Errorf("%q has a \"*\" that is not the whole leftmost label", shown)
	}
	name, err := toASCII(s)
	if err != nil {
		return "", fmt.Errorf("%q is no domain name: %w", shown, err)
	}
	return name, checkLDH(name, shown)
}

// toASCII lower-cases a name and turns U-labels into A-labels; it refuses A-labels that stand for nothing.
func toASCII(s string) (string, error) {
	lower := strings.ToLower(s)
	if isASCII(lower) && !strings.Contains(lower, "xn--") {
		return lower, nil
	}
	if strings.ContainsFunc(s, invisible) {
		return "", errors.New("it holds characters that cannot be seen")
	}
	name, err := idna.Lookup.ToASCII(s)
	if err != nil {
		return "", errors.New("its international labels are not valid (RFC 5891)")
	}
	return name, nil
}

// checkLDH holds a lower-case ASCII name against the preferred name syntax (RFC 1034, section 3.5; RFC 1123,
// section 2.1; RFC 5890, section 2.3.1).
func checkLDH(name, shown string) error {
	if len(name) > maxDNSName {
		return fmt.Errorf("is longer than the %d characters of a DNS name", maxDNSName)
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if err := checkLabel(l); err != nil {
			return fmt.Errorf("%q is no domain name: %w", shown, err)
		}
	}
	// Resolvers take such a name for an IPv4 address.
	if isDigits(labels[len(labels)-1]) {
		return fmt.Errorf("%q looks like an IP address: those belong into ip_addresses", shown)
	}
	return nil
}

func checkLabel(l string) error {
	switch {
	case l == "":
		return errors.New("it has an empty label")
	case len(l) > maxLabel:
		return fmt.Errorf("a label is longer than %d characters", maxLabel)
	case l[0] == '-' || l[len(l)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", l)
	case len(l) > 3 && l[2:4] == "--" && !strings.HasPrefix(l, "xn--"):
		return fmt.Errorf("label %q has hyphens in its third and fourth place, which are reserved", l)
	}
	if i := strings.IndexFunc(l, notLDH); i >= 0 {
		return fmt.Errorf("label %q holds something besides letters, digits and hyphens", l)
	}
	return nil
}

// parseIP gives the canonical form of an IP address that a host can have.
func parseIP(s string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is no IP address", s)
	case ip.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone, which a certificate cannot hold", s)
	}
	return usableIP(ip.Unmap())
}

func usableIP(ip netip.Addr) (netip.Addr, error) {
	if ip.IsUnspecified() || ip.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%q is not the address of a host", ip)
	}
	return ip, nil
}

// parseEmail gives the canonical form of a mail address (RFC 5280, section 4.2.1.6: rfc822Name): the domain in
// lower case, the local part as it is.
func parseEmail(s string) (string, error) {
	a, err := mail.ParseAddress(s)
	if err != nil || a.Name != "" || a.Address != s {
		return "", fmt.Errorf("%q is no plain mail address", s)
	}
	at := strings.LastIndexByte(s, '@')
	local, domain := s[:at], s[at+1:]
	if !isASCII(local) || strings.ContainsAny(local, "\" \\") || len(local) > maxLocal {
		return "", fmt.Errorf("%q has a local part that certificates do not carry: plain ASCII up to %d characters", s, maxLocal)
	}
	host, err := parseHost(domain, domain)
	if err != nil {
		return "", err
	}
	if len(local)+1+len(host) > maxEmail {
		return "", fmt.Errorf("is longer than the %d characters of a mail address", maxEmail)
	}
	return local + "@" + host, nil
}

// parseURI gives the canonical form of a URI (RFC 5280, section 4.2.1.6): absolute, scheme and host in lower case.
func parseURI(s string) (string, error) {
	if !isGraphicASCII(s) || len(s) > maxURI {
		return "", fmt.Errorf("%q is no URI: up to %d characters of ASCII without spaces, the rest percent-encoded", clip(s), maxURI)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is no URI", s)
	case u.Scheme == "":
		return "", fmt.Errorf("%q has no scheme: give an absolute URI such as spiffe://example.org/web", s)
	case u.User != nil:
		return "", fmt.Errorf("%q names a user, which a certificate must not", s)
	case u.Host == "" && u.Opaque == "":
		return "", fmt.Errorf("%q names neither a host nor, like urn:, anything after its scheme", s)
	}
	if err := canonicalHost(u); err != nil {
		return "", err
	}
	return stable(u, s)
}

// canonicalHost brings the authority of u into canonical form.
func canonicalHost(u *url.URL) error {
	if u.Host == "" {
		return nil
	}
	port := u.Port()
	if _, err := strconv.ParseUint(port, 10, 16); port != "" && err != nil {
		return fmt.Errorf("%q is no port", port)
	}
	host, err := uriHost(u.Hostname())
	if err != nil {
		return err
	}
	if port != "" {
		host += ":" + port
	}
	u.Host = host
	return nil
}

// uriHost takes a domain name or an IP address in the form of an authority (RFC 3986, section 3.2.2).
func uriHost(h string) (string, error) {
	ip, err := netip.ParseAddr(h)
	switch {
	case err != nil:
		return parseHost(h, h)
	case ip.Zone() != "":
		return "", fmt.Errorf("%q has a zone, which a certificate cannot hold", h)
	case ip.Is4():
		return ip.String(), nil
	default:
		return "[" + ip.String() + "]", nil
	}
}

// stable gives the text of u when parsing it again gives the same text: only such a URI can be compared.
func stable(u *url.URL, shown string) (string, error) {
	text := u.String()
	again, err := url.Parse(text)
	if err != nil || again.String() != text || again.Host != u.Host || !isGraphicASCII(text) {
		return "", fmt.Errorf("%q is no URI that can be written in one way only", shown)
	}
	return text, nil
}

// invisible finds what the mapping of UTS 46 would drop in silence, and bytes that are no UTF-8.
func invisible(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r) || unicode.Is(unicode.Variation_Selector, r)
}

func notLDH(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func isASCII(s string) bool {
	return !slices.ContainsFunc([]byte(s), func(b byte) bool { return b >= 0x80 })
}

func isGraphicASCII(s string) bool {
	return !slices.ContainsFunc([]byte(s), func(b byte) bool { return b <= ' ' || b >= 0x7f })
}

// clip keeps messages short when the input is not.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

package core

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/errs"
)

// pattern is one compiled SAN pattern of a profile:
//
//	example.com              that DNS name
//	*.example.com            DNS names with exactly one label before example.com ("*" is such a label)
//	**.example.com           DNS names with one or more labels before example.com
//	10.0.0.0/8, 192.0.2.1    IP addresses
//	*@example.com, a@b.c     mail addresses
//	spiffe://example.com/*   URIs that begin so and have something after it; without "*", that URI
type pattern struct {
	dns    func(name string) bool
	ip     func(a netip.Addr) bool
	email  func(address string) bool
	uri    func(uri string) bool
	source string
}

func never[T any](T) bool { return false }

// compilePatterns compiles a profile's patterns; fields of violations are allowed_san_patterns[i].
func compilePatterns(sources []string) ([]pattern, error) {
	var v errs.Violations
	out := make([]pattern, 0, len(sources))
	for i, s := range sources {
		p, err := compilePattern(s)
		if err != nil {
			v.Add(fmt.Sprintf("allowed_san_patterns[%d]", i), "%q %s", s, err.Error())
			continue
		}
		out = append(out, p)
	}
	return out, v.Err()
}

func compilePattern(s string) (pattern, error) {
	p := pattern{dns: never[string], ip: never[netip.Addr], email: never[string], uri: never[string], source: s}
	switch {
	case s == "" || s != strings.TrimSpace(s):
		return p, errors.New("is empty or has spaces around it")
	case strings.Contains(s, "://") || strings.HasPrefix(s, "urn:"):
		return p, compileURI(&p, s)
	case strings.Contains(s, "@"):
		return p, compileEmail(&p, s)
	case isAddress(s):
		return p, compileIP(&p, s)
	default:
		return p, compileDNS(&p, s)
	}
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || strings.Contains(s, "/")
}

func compileIP(p *pattern, s string) error {
	if a, err := netip.ParseAddr(s); err == nil {
		p.ip = func(x netip.Addr) bool { return x == a.Unmap() }
		return nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("is no address range such as 10.0.0.0/8")
	}
	if prefix != prefix.Masked() {
		return fmt.Errorf("has bits beyond its length: write %s", prefix.Masked())
	}
	p.ip = prefix.Contains
	return nil
}

func compileDNS(p *pattern, s string) error {
	deep := strings.HasPrefix(s, "**.")
	one := !deep && strings.HasPrefix(s, "*.")
	base := strings.TrimPrefix(strings.TrimPrefix(s, "**."), "*.")
	if strings.Contains(base, "*") {
		return errors.New(`has a "*" elsewhere than in "*." or "**." at its beginning; leave the list empty to allow any name`)
	}
	names, err := certcheck.ParseNames(certcheck.RawNames{DNSNames: []string{base}})
	if err != nil {
		return errors.New("is no DNS name, address range, mail address or URI")
	}
	base = names.DNSNames[0]
	p.dns = func(name string) bool {
		label, under := strings.CutSuffix(name, "."+base)
		switch {
		case deep:
			return under
		case one:
			return under && !strings.Contains(label, ".")
		default:
			return name == base
		}
	}
	return nil
}

func compileEmail(p *pattern, s string) error {
	local, domain, _ := strings.Cut(s, "@")
	probe := s
	if local == "*" {
		probe = "a@" + domain
	}
	names, err := certcheck.ParseNames(certcheck.RawNames{EmailAddresses: []string{probe}})
	if err != nil || (local != "*" && strings.Contains(local, "*")) {
		return errors.New("is no mail address, nor one with * before the @")
	}
	want := names.EmailAddresses[0]
	p.email = func(address string) bool { return address == want }
	if local == "*" {
		suffix := strings.TrimPrefix(want, "a")
		p.email = func(address string) bool { return strings.HasSuffix(address, suffix) }
	}
	return nil
}

func compileURI(p *pattern, s string) error {
	prefix, open := strings.CutSuffix(s, "*")
	if strings.Contains(prefix, "*") {
		return errors.New(`has a "*" elsewhere than at its end`)
	}
	if open && !strings.HasSuffix(prefix, "/") && !strings.HasPrefix(prefix, "urn:") {
		return errors.New(`needs a "/" before its "*", or it would let other hosts in`)
	}
	probe := prefix
	if open {
		probe += "x"
	}
	names, err := certcheck.ParseNames(certcheck.RawNames{URIs: []string{probe}})
	if err != nil {
		return errors.New("is no absolute URI")
	}
	want := names.URIs[0]
	p.uri = func(uri string) bool { return uri == want }
	if open {
		head := strings.TrimSuffix(want, "x")
		p.uri = func(uri string) bool { return strings.HasPrefix(uri, head) && len(uri) > len(head) }
	}
	return nil
}

// checkNames holds canonical names against a profile's rules. Fields are those of a certificate.
func checkNames(v *errs.Violations, n certcheck.Names, patterns []pattern, wildcards bool, profileID string) {
	for i, name := range n.DNSNames {
		if strings.HasPrefix(name, "*.") && !wildcards {
			v.Add(fmt.Sprintf("dns_names[%d]", i), "%q is a wildcard, which profile %s does not allow", name, profileID)
		}
	}
	if len(patterns) == 0 {
		return
	}
	refuse(v, "dns_names", n.DNSNames, profileID, func(s string) bool { return matches(patterns, func(p pattern) bool { return p.dns(s) }) })
	refuse(v, "ip_addresses", n.IPAddresses, profileID, func(a netip.Addr) bool { return matches(patterns, func(p pattern) bool { return p.ip(a) }) })
	refuse(v, "email_addresses", n.EmailAddresses, profileID, func(s string) bool { return matches(patterns, func(p pattern) bool { return p.email(s) }) })
	refuse(v, "uris", n.URIs, profileID, func(s string) bool { return matches(patterns, func(p pattern) bool { return p.uri(s) }) })
}

func refuse[T any](v *errs.Violations, field string, names []T, profileID string, ok func(T) bool) {
	for i, n := range names {
		if !ok(n) {
			v.Add(fmt.Sprintf("%s[%d]", field, i), "%v matches none of the allowed_san_patterns of profile %s", n, profileID)
		}
	}
}

func matches(patterns []pattern, match func(pattern) bool) bool {
	return slices.ContainsFunc(patterns, match)
}

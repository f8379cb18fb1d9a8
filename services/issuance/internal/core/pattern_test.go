package core

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/errs"
)

func TestPatternsMatchWhatTheProfileSays(t *testing.T) {
	t.Parallel()
	dns := func(s string) certcheck.RawNames { return certcheck.RawNames{DNSNames: []string{s}} }
	ip := func(s string) certcheck.RawNames { return certcheck.RawNames{IPAddresses: []string{s}} }
	mail := func(s string) certcheck.RawNames { return certcheck.RawNames{EmailAddresses: []string{s}} }
	uri := func(s string) certcheck.RawNames { return certcheck.RawNames{URIs: []string{s}} }
	for _, c := range []struct {
		pattern string
		yes, no []certcheck.RawNames
	}{
		{"example.com", []certcheck.RawNames{dns("example.com"), dns("EXAMPLE.com")}, []certcheck.RawNames{dns("www.example.com"), dns("xexample.com")}},
		{"*.example.com", []certcheck.RawNames{dns("www.example.com"), dns("*.example.com")}, []certcheck.RawNames{dns("example.com"), dns("a.b.example.com"), dns("*.b.example.com"), dns("wwwexample.com")}},
		{"**.example.com", []certcheck.RawNames{dns("www.example.com"), dns("a.b.example.com"), dns("*.b.example.com")}, []certcheck.RawNames{dns("example.com"), dns("wexample.com"), ip("10.0.0.1")}},
		{"10.0.0.0/8", []certcheck.RawNames{ip("10.1.2.3")}, []certcheck.RawNames{ip("11.0.0.1"), ip("fd00::1"), dns("example.com")}},
		{"192.0.2.1", []certcheck.RawNames{ip("192.0.2.1"), ip("::ffff:192.0.2.1")}, []certcheck.RawNames{ip("192.0.2.2")}},
		{"*@example.com", []certcheck.RawNames{mail("a@example.com"), mail("b.c@EXAMPLE.com")}, []certcheck.RawNames{mail("a@sub.example.com"), mail("a@xexample.com")}},
		{"root@example.com", []certcheck.RawNames{mail("root@example.com")}, []certcheck.RawNames{mail("toor@example.com")}},
		{"spiffe://example.com/*", []certcheck.RawNames{uri("spiffe://example.com/a/b")}, []certcheck.RawNames{uri("spiffe://example.com/"), uri("spiffe://example.com.evil.org/a"), uri("https://example.com/a")}},
		{"spiffe://example.com/web", []certcheck.RawNames{uri("spiffe://example.com/web")}, []certcheck.RawNames{uri("spiffe://example.com/web2")}},
	} {
		p, err := compilePatterns([]string{c.pattern})
		require.NoError(t, err, c.pattern)
		check := func(raw certcheck.RawNames) error {
			n, err := certcheck.ParseNames(raw)
			require.NoError(t, err)
			var v errs.Violations
			checkNames(&v, n, p, true, "prof-x")
			return v.Err()
		}
		for _, raw := range c.yes {
			require.NoError(t, check(raw), "%s and %v", c.pattern, raw)
		}
		for _, raw := range c.no {
			require.Error(t, check(raw), "%s and %v", c.pattern, raw)
		}
	}
}

func TestPatternsThatMeanNothingAreRefusedWithTheirPlace(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", " example.com", "*", "**", "*.*.example.com", "w*.example.com", "exa mple.com", "10.0.0.1/8", "10.0.0.0/33", "a*@example.com", "@example.com",
		"*@", "spiffe://example.com*", "spiffe://*/a", "://x", "***.example.com", "example.com.",
	} {
		_, err := compilePatterns([]string{"example.com", s})
		require.Equal(t, errs.Invalid, errs.KindOf(err), "%q", s)
		require.Equal(t, "allowed_san_patterns[1]", errs.From(err).Violations()[0].Field, "%q", s)
	}
}

package globalsign

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

func TestSerialNumbersKeepTheFormOfTheCA(t *testing.T) {
	t.Parallel()
	ref, ok := refOf(lastSegment("https://emea.api.hvca.globalsign.com:8443/v2/certificates/00741DAF9EC2D5F7DC"))
	require.True(t, ok)
	require.Equal(t, issuer.Ref{"certificate": "00741DAF9EC2D5F7DC", "serial_number": "741daf9ec2d5f7dc"}, ref)
	for _, bad := range []string{"", "0", "x", "-1", "12 34", "..", strings.Repeat("F", 41), strings.Repeat("F", 40)} {
		_, ok := refOf(bad)
		require.False(t, ok, bad)
	}
	require.Equal(t, "AB", lastSegment("/v2/certificates/AB"))
	for _, none := range []string{"", "/", "://", "%zz"} {
		_, ok := refOf(lastSegment(none))
		require.False(t, ok, none)
	}
}

func TestAPageOfAListIsFoundAgain(t *testing.T) {
	t.Parallel()
	at := cursor{page: 3, seen: 200, from: 1700000000, to: 1800000000}
	got, ok := parseCursor(at.String())
	require.True(t, ok)
	require.Equal(t, at, got)
	for _, bad := range []string{"", "1", "1.2.3", "0.0.0.0", "1.-1.0.0", "a.b.c.d", "1.2.3.4.5", strings.Repeat("1", 200)} {
		_, ok := parseCursor(bad)
		require.False(t, ok, bad)
	}
}

func TestAnErrorNamesTheFields(t *testing.T) {
	t.Parallel()
	words, ok := readProblem([]byte(`{"description":"not compliant","errors":{"san.dns_names":"too many","validity":{"a":1}}}`))
	require.True(t, ok)
	require.Equal(t, `not compliant; san.dns_names: too many; validity: {"a":1}`, words)
	_, ok = readProblem([]byte(`{"description":7}`))
	require.True(t, ok, "it is the CA's, though it cannot be read")
	for _, foreign := range []string{``, `<html>`, `null`, `[]`, `"x"`} {
		_, ok = readProblem([]byte(foreign))
		require.False(t, ok, foreign)
	}
}

func TestTheKeysOfOldCertificatesAreForgotten(t *testing.T) {
	t.Parallel()
	s := newSeenKeys()
	for n := range maxSeen + 10 {
		s.put(strings.Repeat("A", 1+n%3)+string(rune('0'+n%10))+strings.Repeat("F", n/1000)+itoa(n), [32]byte{byte(n)})
	}
	require.Len(t, s.keys, maxSeen)
	require.Len(t, s.order, maxSeen)
}

func itoa(n int) string {
	var b strings.Builder
	for ; n > 0; n /= 10 {
		b.WriteByte(byte('0' + n%10))
	}
	return b.String()
}

func FuzzAnswers(f *testing.F) {
	f.Add("741DAF9EC2D5F7DC", []byte(`{"description":"x","errors":{"a":"b"}}`), "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
	f.Add("/v2/certificates/0A", []byte(`null`), "")
	f.Fuzz(func(t *testing.T, location string, body []byte, pem string) {
		if ref, ok := refOf(lastSegment(location)); ok {
			_, err := issuer.ParseSerial(ref[refSerial])
			require.NoError(t, err)
		}
		if c, ok := parseCursor(location); ok {
			again, ok := parseCursor(c.String())
			require.True(t, ok)
			require.Equal(t, c, again)
		}
		words, _ := readProblem(body)
		if utf8.Valid(body) {
			require.True(t, utf8.ValidString(words))
		}
		if c, err := parseChain([]string{pem}); err == nil {
			require.NotEmpty(t, c)
			require.LessOrEqual(t, len(c), maxChain*certcheck.MaxCertificates)
		}
	})
}

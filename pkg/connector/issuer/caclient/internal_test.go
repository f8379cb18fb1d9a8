package caclient

import (
	"crypto/x509"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

func TestRetryAfterIsReadInBothForms(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 15, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"120", "", 2 * time.Minute},
		{" 7 ", "", 7 * time.Second},
		{"0", "", 0},
		{"-5", "", 0},
		{"1.5", "", 0},
		{"soon", "", 0},
		{"99999999999999999", "", maxRetryAfter},
		{"Sun, 29 Nov 2026 15:01:00 GMT", "", time.Minute},
		{"Sun, 29 Nov 2026 14:00:00 GMT", "", 0},
		{"Sunday, 29-Nov-26 15:01:00 GMT", "", time.Minute},
		{"Mon, 30 Nov 2026 15:01:00 GMT", "Mon, 30 Nov 2026 15:00:00 GMT", time.Minute}, // the CA's clock is a day ahead
		{"Sat, 28 Nov 2026 15:01:00 GMT", "Sat, 28 Nov 2026 15:00:00 GMT", time.Minute},
		{"Sun, 29 Nov 2099 15:01:00 GMT", "", maxRetryAfter},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.value)
		h.Set("Date", c.date)
		require.Equal(t, c.want, retryAfter(h, now), "%s at %s", c.value, c.date)
	}
}

func TestErrorsOfEachCAAreRead(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][2]string{
		`{"errors":[{"code":"access_denied","message":"no"},{"code":"x"}]}`: {"access_denied", "no"},
		`{"code":-16,"description":"Unknown user"}`:                         {"-16", "Unknown user"},
		`{"code":0,"description":"Being processed by Sectigo"}`:             {"0", "Being processed by Sectigo"},
		`{"description":"bad","errors":{"san":"x","cn":"y"}}`:               {"", "bad"},
		`{"errors":{"san":"x","cn":"y"}}`:                                   {"", "cn: y; san: x"},
		`{"type":"ErrorResponse","error":{"code":"E1","message":"gone"}}`:   {"E1", "gone"},
		`{"error":"invalid_client","error_description":"who"}`:              {"invalid_client", "who"},
		`{"status":400,"errors":[{"message":"bad name"}]}`:                  {"", "bad name"},
		`{"message":7}`: {"", ""},
		`{}`:            {"", ""},
	} {
		code, message, ok := ReadError([]byte(body))
		require.True(t, ok, body)
		require.Equal(t, want, [2]string{code, message}, body)
	}
	for _, body := range []string{"", "null", "[]", `"text"`, "{", "<html>"} {
		_, _, ok := ReadError([]byte(body))
		require.False(t, ok, body)
	}
}

func TestWordsAreCleaned(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"plain words":                  "plain words",
		"  a\r\n\tb\x00\u200b\u202ec ": "a b c",
		"<HTML><body>x":                "(a page)",
		"oops <!DOCTYPE html>":         "(a page)",
		"bad \xff byte":                "bad \uFFFD byte",
	} {
		require.Equal(t, want, Clean(raw))
	}
	require.Equal(t, strings.Repeat("x", maxWords)+"…", Clean(strings.Repeat("x", 5000)))
}

func TestTLSServerRequestIsRefusedForWhatPublicCAsDoNotDo(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Second)
	good := func() issuer.SubmitRequest {
		names, err := certcheck.ParseNames(certcheck.RawNames{CommonName: "a.example.com", DNSNames: []string{"a.example.com", "b.example.com"}})
		require.NoError(t, err)
		return issuer.SubmitRequest{OrderID: "o", CSR: csrOf(t), Names: names, Lifetime: time.Hour, RequestedAt: now}
	}
	got, err := CheckTLSServer(t.Context(), good(), now, false)
	require.NoError(t, err)
	require.Equal(t, "a.example.com", got.CommonName)
	require.Equal(t, now.Add(time.Hour), got.LatestEnd)
	bounded := good()
	bounded.NotAfter = now.Add(time.Minute)
	got, err = CheckTLSServer(t.Context(), bounded, now, false)
	require.NoError(t, err)
	require.Equal(t, bounded.NotAfter, got.LatestEnd)
	for what, edit := range map[string]func(*issuer.SubmitRequest){
		"no order id":  func(r *issuer.SubmitRequest) { r.OrderID = "" },
		"no CSR":       func(r *issuer.SubmitRequest) { r.CSR = nil },
		"no names":     func(r *issuer.SubmitRequest) { r.Names = certcheck.Names{} },
		"e-mail":       func(r *issuer.SubmitRequest) { r.Names.EmailAddresses = []string{"a@example.com"} },
		"lifetime":     func(r *issuer.SubmitRequest) { r.Lifetime = 0 },
		"over already": func(r *issuer.SubmitRequest) { r.NotAfter = now.Add(-time.Hour) },
		"CA key usage": func(r *issuer.SubmitRequest) { r.KeyUsage = x509.KeyUsageCRLSign },
		"code signing": func(r *issuer.SubmitRequest) { r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
		"TLS client":   func(r *issuer.SubmitRequest) { r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
		"long names only": func(r *issuer.SubmitRequest) {
			r.Names.CommonName, r.Names.DNSNames = "", []string{strings.Repeat("x.", 40) + "com"}
		},
	} {
		r := good()
		edit(&r)
		_, err := CheckTLSServer(t.Context(), r, now, false)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), what)
	}
	r := good()
	r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	_, err = CheckTLSServer(t.Context(), r, now, true)
	require.NoError(t, err)
}

func TestOrderMayAppearUntilItHasSettled(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		since, last time.Duration // before now
		left        time.Duration
	}{
		{time.Minute, 0, time.Minute}, {3 * time.Minute, 0, 0}, {time.Hour, 30 * time.Second, 90 * time.Second}, {time.Hour, 2 * time.Minute, 0},
	} {
		r := issuer.FindRequest{Since: now.Add(-c.since)}
		if c.last > 0 {
			r.LastSubmitted = now.Add(-c.last)
		}
		err := Unsettled(r, now, 2*time.Minute)
		left, _ := issuer.RetryDelay(err)
		require.Equal(t, c.left, left)
		require.Equal(t, c.left == 0, err == nil)
	}
	require.NoError(t, Unsettled(issuer.FindRequest{}, now, time.Minute))
}

func FuzzReadError(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"a","message":"b"}],"error":{"code":1},"code":-1,"description":"x"}`))
	f.Add([]byte(`{"error":"invalid_client","error_description":"who"}`))
	f.Add([]byte(`{"errors":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		code, message, ok := ReadError(body)
		require.Equal(t, ok, isObject(body))
		for _, words := range []string{Clean(code), Clean(message)} {
			require.True(t, utf8.ValidString(words))
			require.LessOrEqual(t, utf8.RuneCountInString(words), maxWords+2)
			require.False(t, strings.ContainsFunc(words, unicode.IsControl))
			require.NotContains(t, strings.ToLower(words), "<html")
		}
	})
}

func isObject(body []byte) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal(body, &object) == nil && object != nil
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("Sun, 29 Nov 2026 15:01:00 GMT", "Sun, 29 Nov 2026 15:00:00 GMT")
	f.Fuzz(func(t *testing.T, value, date string) {
		got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, time.Now())
		require.True(t, got >= 0 && got <= maxRetryAfter)
	})
}

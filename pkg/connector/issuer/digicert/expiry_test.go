package digicert

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLastDayIsOverByTheLatestAllowedEnd(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 15, 0, 0, 0, time.UTC)
	at := func(s string) time.Time {
		when, err := time.Parse(time.RFC3339, s)
		require.NoError(t, err)
		return when
	}
	for _, c := range []struct {
		name     string
		latest   string
		settings Settings
		reissue  string // the end of the order
		want     string
	}{
		{"in the middle of a day", "2027-01-10T15:00:00Z", Settings{OrderValidityYears: 1}, "", "2027-01-09"},
		{"with the last second of a day", "2027-01-10T23:59:59Z", Settings{OrderValidityYears: 1}, "", "2027-01-10"},
		{"in another zone", "2027-01-10T23:30:00-05:00", Settings{OrderValidityYears: 1}, "", "2027-01-10"},
		{"bounded by the rules for public CAs", "2028-01-10T15:00:00Z", Settings{OrderValidityYears: 3}, "", "2027-06-15"},
		{"bounded by the settings", "2028-01-10T15:00:00Z", Settings{OrderValidityYears: 3, MaxValidityDays: 10}, "", "2026-12-08"},
		{"bounded by the order", "2027-05-10T15:00:00Z", Settings{OrderValidityDays: 30}, "", "2026-12-28"},
		{"a private CA", "2028-01-10T15:00:00Z", Settings{OrderValidityYears: 3, ProductNameID: "private_ssl_plus"}, "", "2028-01-09"},
		{"bounded by the order that is re-issued", "2027-05-10T15:00:00Z", Settings{OrderValidityYears: 1}, "2027-01-15", "2027-01-15"},
		{"tomorrow", "2026-11-30T23:59:59Z", Settings{OrderValidityYears: 1}, "", "2026-11-30"},
	} {
		i := &Issuer{settings: c.settings, now: func() time.Time { return now }}
		var p plan
		if c.reissue != "" {
			p.reissueOf = &order{OrderValidTill: c.reissue}
		}
		got, err := i.expiry(at(c.latest), p)
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, c.name)
	}
	i := &Issuer{settings: Settings{OrderValidityYears: 1}, now: func() time.Time { return now }}
	_, err := i.expiry(at("2026-11-30T15:00:00Z"), plan{})
	require.Error(t, err, "no day is over by then")
}

func TestLimitOfPublicCertificatesFollowsTheRules(t *testing.T) {
	t.Parallel()
	for date, days := range map[string]int{"2026-11-29": 199, "2027-03-14": 199, "2027-03-15": 99, "2029-03-15": 46} {
		now, err := time.Parse(time.DateOnly, date)
		require.NoError(t, err)
		require.Equal(t, time.Duration(days)*day, Settings{ProductNameID: "ssl_basic"}.maxValidity(now), date)
	}
}

func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"id":7,"status":"issued","certificate":{"id":9,"csr":"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----"}}`))
	f.Add([]byte(`{"id":"7","order_valid_till":"2027-01-01","date_created":"2018-10-16T17:29:56+00:00","requests":[{"id":1,"comments":"x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var o order
		if json.Unmarshal(raw, &o) != nil {
			return
		}
		require.True(t, o.ID == "" || numeric(string(o.ID)))
		if end := o.end(); !end.IsZero() {
			require.Equal(t, day-time.Second, end.Sub(end.Truncate(day)))
		}
		_ = o.Certificate.csrHash()
		require.Equal(t, string(o.ID), o.listed().Key)
		_, _ = o.Requests, serial(o.Certificate.SerialNumber)
	})
}

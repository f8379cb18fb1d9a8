package sectigo

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/errs"
)

func TestEachStateOfTheCAIsOneOfOurs(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]issuer.State{
		"Init": issuer.Pending, "Requested": issuer.Pending, "Awaiting approval": issuer.Pending, "SAApproved": issuer.Pending,
		"Approved": issuer.Pending, "Applied": issuer.Pending, "Unmanaged": issuer.Pending, "Not Enrolled": issuer.Pending,
		"In Orbit": issuer.Pending, "": issuer.Pending,
		"Issued": issuer.Issued, "Downloaded": issuer.Issued, "Enrolled - Pending Download": issuer.Issued, "Replaced": issuer.Issued,
		"ISSUED":   issuer.Issued,
		"Declined": issuer.Rejected, "Rejected": issuer.Rejected, "Invalid": issuer.Rejected, "Revoked": issuer.Rejected, "Expired": issuer.Rejected,
	} {
		require.Equal(t, want, stateOf(status), status)
		require.NotEmpty(t, waitingFor(status)+endedBy(status))
	}
	require.Contains(t, waitingFor("In Orbit"), "In Orbit")
}

func TestSerialNumbersHaveOneForm(t *testing.T) {
	t.Parallel()
	n, ok := new(big.Int).SetString("a3ec061fb1ec010730565008d72d869", 16)
	require.True(t, ok)
	require.Equal(t, "0A:3E:C0:61:FB:1E:C0:10:73:05:65:00:8D:72:D8:69", colons(n))
	require.Equal(t, issuer.FormatSerial(n), serial(colons(n)))
	for _, s := range []string{"", "0", "zz", "-1"} {
		require.Empty(t, serial(s))
	}
}

func TestDatesOfInstancesAreRead(t *testing.T) {
	t.Parallel()
	want := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	for _, s := range []string{"11/29/2026", "2026-11-29", "2026-11-29T00:00:00Z", "2026-11-29 00:00:00"} {
		require.Equal(t, want, parseDate(s), s)
	}
	require.True(t, parseDate("29.11.2026").IsZero())
}

func TestCodesOfTheAPIAreMapped(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]issuer.Outcome{
		"-195": issuer.OutcomeUnknown, "-140": issuer.OutcomeUnknown, "-129": issuer.OutcomeUnknown, "-1": issuer.OutcomeUnknown,
		"-65": issuer.OutcomeUnknown, "-2": issuer.OutcomeUnknown,
		"-36": issuer.OutcomePermanent, "-39": issuer.OutcomePermanent, "-10": issuer.OutcomePermanent, "-107": issuer.OutcomePermanent,
	} {
		require.Equal(t, want, issuer.OutcomeOf(refusedOrder(&caclient.StatusError{Status: 400, Code: code})), code)
	}
	require.NoError(t, refusedOrder(&caclient.StatusError{Status: 400, Code: "-4711"}))
	require.NoError(t, refusal(&caclient.StatusError{Status: 400, Code: "what"}))
	for _, code := range []string{"-195", "-1", "what", "", "-37", "-410"} {
		p, ok := issuer.AsPermanent(refusal(&caclient.StatusError{Status: 404, Code: code}))
		require.True(t, ok)
		require.Equal(t, issuer.ReasonOrderNotFound, p.Reason, code)
	}
	for _, code := range []string{"0", "-1400", "-183", "-103", "-109"} {
		require.True(t, notReady(&caclient.StatusError{Status: 400, Code: code}), code)
	}
	require.False(t, notReady(&caclient.StatusError{Status: 400}))
	require.False(t, notReady(&caclient.StatusError{Status: 400, Code: "-110"}))
}

func TestAddressForLoginsByCertificate(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"https://cert-manager.com/api":         "https://cert-manager.com/private/api",
		"https://cert-manager.com/api/":        "https://cert-manager.com/private/api",
		"https://cert-manager.com/private/api": "https://cert-manager.com/private/api",
		"https://hard.cert-manager.com":        "https://hard.cert-manager.com/private",
	} {
		got, err := private(base)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestSettingsAreJudgedByField(t *testing.T) {
	t.Parallel()
	good := map[string]any{"customer_uri": "c", "login": "l", "organization_id": 1, "certificate_profile_id": 2}
	for field, value := range map[string]any{
		"customer_uri": "", "login": "a\nb", "organization_id": 0, "certificate_profile_id": 0, "term": -1, "server_type": -2,
		"collect_format": "pkcs12", "renewal": "never", "external_requester": strings.Repeat("x", 300), "lookup_settle_seconds": 100000,
		"base_url": "cert-manager.com", "custom_fields": map[string]string{"": "x"}, "requests_per_second": -1, "max_concurrent_requests": -1, "burst": -1,
	} {
		settings := map[string]any{}
		for k, v := range good {
			settings[k] = v
		}
		settings[field] = value
		raw, err := json.Marshal(settings)
		require.NoError(t, err)
		err = Type().Validate(raw, []string{"password"})
		require.Error(t, err, field)
		violations := errs.From(err).Violations()
		require.Len(t, violations, 1, field)
		require.Equal(t, field, violations[0].Field)
	}
	raw, err := json.Marshal(good)
	require.NoError(t, err)
	require.NoError(t, Type().Validate(raw, []string{"password"}))
	require.Error(t, Type().Validate(raw, nil))
}

func FuzzDetails(f *testing.F) {
	f.Add([]byte(`{"sslId":55,"status":"Issued","serialNumber":"AB:CD:EF","requested":"11/29/2026","subjectAlternativeNames":["a.example.com"],"comments":"ord"}`))
	f.Add([]byte(`{"id":"7","status":"Enrolled - Pending Download","commonName":"a.example.com"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d details
		if json.Unmarshal(raw, &d) != nil {
			return
		}
		require.True(t, d.number() == "" || numeric(d.number()))
		o := d.listed()
		require.Equal(t, d.number(), o.Key)
		if o.SerialNumber != "" {
			_, ok := new(big.Int).SetString(o.SerialNumber, 16)
			require.True(t, ok)
		}
		require.Contains(t, []issuer.State{issuer.Pending, issuer.Issued, issuer.Rejected}, o.State)
	})
}

package digicert_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// scripted makes an issuer whose CA answers what a test says.
func scripted(t testing.TB, answer http.HandlerFunc) *digicert.Issuer {
	t.Helper()
	server := httptest.NewTLSServer(answer)
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	raw, err := json.Marshal(map[string]any{
		"base_url": server.URL + "/services/v2", "ca_file": file, "product_name_id": "ssl_basic", "organization_id": 1,
	})
	require.NoError(t, err)
	i, err := digicert.New(issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{"api_key": secretbox.NewSecret("key-of-ours")}}, issuer.Deps{})
	require.NoError(t, err)
	return i
}

func write(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func TestEachStateOfTheCAIsOneOfOurs(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]issuer.State{
		"pending": issuer.Pending, "processing": issuer.Pending, "needs_approval": issuer.Pending, "reissue_pending": issuer.Pending,
		"waiting_pickup": issuer.Pending, "approved": issuer.Pending, "needs_csr": issuer.Pending, "something_new": issuer.Pending, "": issuer.Pending,
		"rejected": issuer.Rejected, "denied": issuer.Rejected, "canceled": issuer.Rejected, "expired": issuer.Rejected, "revoked": issuer.Rejected,
		"issued": issuer.Pending, // without a certificate id
	} {
		i := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
			write(w, http.StatusOK, fmt.Sprintf(`{"id":7,"status":%q,"certificate":{"common_name":"a.example.com"}}`, status))
		})
		ref := issuer.Ref{"order_id": "7"}
		sub, err := i.Poll(t.Context(), ref)
		require.NoError(t, err)
		require.Equal(t, want, sub.State, status)
		require.Equal(t, ref, sub.Ref)
		require.NotEmpty(t, sub.Detail)
	}
}

func TestUnknownStateIsNamedAndItsWaitKept(t *testing.T) {
	t.Parallel()
	i := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "90")
		write(w, http.StatusOK, `{"id":"7","status":"in_orbit"}`)
	})
	sub, err := i.Poll(t.Context(), issuer.Ref{"order_id": "7"})
	require.NoError(t, err)
	require.Contains(t, sub.Detail, "in_orbit")
	require.Equal(t, 90*time.Second, sub.RetryAfter, "the CA's wish is passed on")
}

func TestValueForTheValidationOfTheDomainIsShown(t *testing.T) {
	t.Parallel()
	i := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusCreated, `{"id":7,"requests":[{"id":1,"status":"submitted"}],"dcv_random_value":"fjqr7th5ds"}`)
	})
	sub := submit(t, i, request(t, "dv"))
	require.Equal(t, issuer.Pending, sub.State)
	require.Contains(t, sub.Detail, "fjqr7th5ds")
}

func TestAnswersThatMakeNoSenseLeaveTheOutcomeOpen(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{}`, `{"id":null}`, `{"id":"abc"}`, `{"id":-1}`, `[]`, `{"id":1}{"id":2}`, ``, `null`} {
		i := scripted(t, func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusCreated, body) })
		_, err := i.Submit(t.Context(), request(t, "nonsense"))
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%s: %v", body, err)
	}
	i := scripted(t, func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, `{"id":8,"status":"issued"}`) })
	_, err := i.Poll(t.Context(), issuer.Ref{"order_id": "7"})
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "another order than the one that was asked for")
}

func TestRefusalsSayWhoseDoingTheyAre(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		body   string
		fault  issuer.Fault
		field  string
	}{
		{401, `{"errors":[{"code":"access_denied|invalid_api_key","message":"key key-of-ours is not valid"}]}`, issuer.FaultConfiguration, "api_key"},
		{403, `{"errors":[{"code":"access_denied","message":"no"}]}`, issuer.FaultConfiguration, ""},
		{404, `{"errors":[{"code":"not_found|product","message":"no"}]}`, issuer.FaultConfiguration, "product_name_id"},
		{400, `{"errors":[{"code":"invalid_csr","message":"the CSR is not valid"}]}`, issuer.FaultRequest, ""},
		{422, ``, issuer.FaultRequest, ""},
	} {
		i := scripted(t, func(w http.ResponseWriter, _ *http.Request) { write(w, c.status, c.body) })
		_, err := i.Submit(t.Context(), request(t, "refused"))
		p, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%d: %v", c.status, err)
		require.Equal(t, c.fault, p.Fault)
		require.Equal(t, c.field, p.Field)
		require.NotContains(t, err.Error(), "key-of-ours", "a secret that the CA repeats is masked")
	}
}

func TestDownloadThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 403, 404, 409, 500} {
		i := scripted(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "download") {
				write(w, status, `{"errors":[{"code":"x","message":"y"}]}`)
				return
			}
			write(w, http.StatusOK, `{"id":7,"status":"issued","certificate":{"id":9}}`)
		})
		_, err := i.Poll(t.Context(), issuer.Ref{"order_id": "7"})
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%d: %v", status, err)
	}
}

func TestSettingsAreJudgedByField(t *testing.T) {
	t.Parallel()
	key := []string{"api_key"}
	for raw, field := range map[string]string{
		`{"organization_id":1}`:                                                                                "product_name_id",
		`{"product_name_id":"ssl_basic"}`:                                                                      "organization_id",
		`{"product_name_id":"../x","organization_id":1}`:                                                       "product_name_id",
		`{"product_name_id":"ssl_basic","organization_id":-1}`:                                                 "organization_id",
		`{"product_name_id":"ssl_basic","organization_id":1,"base_url":"http://ca.example.com"}`:               "base_url",
		`{"product_name_id":"ssl_basic","organization_id":1,"base_url":"https://u:p@ca.example.com"}`:          "base_url",
		`{"product_name_id":"ssl_basic","organization_id":1,"renewal":"sometimes"}`:                            "renewal",
		`{"product_name_id":"ssl_basic","organization_id":1,"payment_method":"shells"}`:                        "payment_method",
		`{"product_name_id":"ssl_basic","organization_id":1,"order_validity_years":9}`:                         "order_validity_years",
		`{"product_name_id":"ssl_basic","organization_id":1,"order_validity_years":1,"order_validity_days":1}`: "order_validity_days",
		`{"product_name_id":"ssl_basic","organization_id":1,"ca_cert_id":"a b"}`:                               "ca_cert_id",
		`{"product_name_id":"ssl_basic","organization_id":1,"ca_file":"relative"}`:                             "ca_file",
		`{"product_name_id":"ssl_basic","organization_id":1,"timeout_seconds":-1}`:                             "timeout_seconds",
		`{"product_name_id":"ssl_basic","organization_id":1,"client_cert_file":"/c"}`:                          "client_key_file",
		`{"product_name_id":"ssl_basic","organization_id":1,"proxy_url":"http://u:p@proxy.example.com"}`:       "proxy_url",
		`{"product_name_id":"ssl_basic","organization_id":1,"lookup_settle_seconds":-1}`:                       "lookup_settle_seconds",
	} {
		err := digicert.Type().Validate([]byte(raw), key)
		require.Error(t, err, raw)
		violations := errs.From(err).Violations()
		require.Len(t, violations, 1, raw)
		require.Equal(t, field, violations[0].Field, raw)
	}
	require.NoError(t, digicert.Type().Validate([]byte(`{"product_name_id":"ssl_dv_geotrust_flex"}`), key))
	require.Error(t, digicert.Type().Validate([]byte(`{"product_name_id":"ssl_dv_geotrust_flex"}`), nil), "without a key")
}

func TestKeyWithTheEndOfItsLineIsRefusedAndNotShown(t *testing.T) {
	t.Parallel()
	_, err := digicert.New(issuer.Config{
		Settings: []byte(`{"product_name_id":"ssl_basic","organization_id":1}`),
		Secrets:  map[string]secretbox.Secret{"api_key": secretbox.NewSecret("key-of-ours\n")},
	}, issuer.Deps{})
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, "api_key", p.Field)
	require.NotContains(t, err.Error(), "key-of-ours")
}

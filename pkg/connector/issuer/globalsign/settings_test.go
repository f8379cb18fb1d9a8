package globalsign_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

const minimal = `{"client_cert_file":"/etc/c.pem","client_key_file":"/etc/k.pem"}`

func secrets() []string { return []string{"api_key", "api_secret"} }

func TestFewSettingsAreNeeded(t *testing.T) {
	t.Parallel()
	s, err := globalsign.ParseSettings(json.RawMessage(minimal), secrets())
	require.NoError(t, err)
	require.Equal(t, "https://emea.api.hvca.globalsign.com:8443", s.BaseURL)
	require.Equal(t, 900, s.LookupSettleSeconds)
}

func TestTheVersionInTheAddressIsTolerated(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"https://a.example:8443", "https://a.example:8443/", "https://a.example:8443/v2", "https://a.example:8443/v2/"} {
		s, err := globalsign.ParseSettings(json.RawMessage(`{"client_cert_file":"/c","client_key_file":"/k","base_url":"`+address+`"}`), secrets())
		require.NoError(t, err)
		require.Equal(t, "https://a.example:8443", s.BaseURL)
	}
}

func TestAWrongSettingIsNamed(t *testing.T) {
	t.Parallel()
	for field, text := range map[string]string{
		"base_url":                `{"base_url":"http://a.example","client_cert_file":"/c","client_key_file":"/k"}`,
		"client_cert_file":        `{}`,
		"client_key_file":         `{"client_cert_file":"/c"}`,
		"country":                 `{"country":"de","client_cert_file":"/c","client_key_file":"/k"}`,
		"organizational_units[0]": `{"organizational_units":["` + longText() + `"],"client_cert_file":"/c","client_key_file":"/k"}`,
		"lookup_settle_seconds":   `{"lookup_settle_seconds":-1,"client_cert_file":"/c","client_key_file":"/k"}`,
		"timeout_seconds":         `{"timeout_seconds":-1,"client_cert_file":"/c","client_key_file":"/k"}`,
	} {
		_, err := globalsign.ParseSettings(json.RawMessage(text), secrets())
		require.Equal(t, errs.Invalid, errs.KindOf(err), field)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
	_, err := globalsign.ParseSettings(json.RawMessage(minimal), nil)
	require.Len(t, errs.From(err).Violations(), 2, "both secrets are needed")
	require.Error(t, globalsign.Type().Validate(json.RawMessage(`{"api_key":"x"}`), secrets()), "secrets are no settings")
}

func longText() string {
	out := make([]byte, 200)
	for i := range out {
		out[i] = 'x'
	}
	return string(out)
}

func TestFilesThatAreNotThereAreNamed(t *testing.T) {
	t.Parallel()
	_, err := globalsign.Type().New(t.Context(), issuer.Config{Settings: json.RawMessage(minimal), Secrets: map[string]secretbox.Secret{
		"api_key": secretbox.NewSecret("k"), "api_secret": secretbox.NewSecret("s"),
	}}, issuer.Deps{})
	wrong, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, issuer.FaultConfiguration, wrong.Fault)
	require.Equal(t, "client_cert_file", wrong.Field)
}

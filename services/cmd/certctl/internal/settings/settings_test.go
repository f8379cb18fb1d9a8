package settings_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

func load(environ ...string) (settings.Server, error) {
	var s settings.Server
	_, err := config.Load(&s, environ, config.Options{})
	return s, err
}

func TestNothingSetIsValid(t *testing.T) {
	t.Parallel()
	s, err := load()
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:8443", s.ListenAddr)
	quotas, err := s.Postgres.ServiceQuotas()
	require.NoError(t, err)
	require.Equal(t, s.Postgres.MaxConns, quotas.Sum())
}

func TestSettingsThatContradictEachOtherStopTheStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		environ []string
		want    []string
	}{
		"quotas that do not add up":      {[]string{"CERTCTL_DATABASE_MAX_CONNS=60"}, []string{"CERTCTL_DATABASE_POOL_QUOTAS", "50", "60"}},
		"half a certificate":             {[]string{"CERTCTL_TLS_CERT_FILE=/x"}, []string{"CERTCTL_TLS_KEY_FILE"}},
		"half a CA":                      {[]string{"CERTCTL_TLS_CA_KEY_FILE=/x"}, []string{"CERTCTL_TLS_CA_CERT_FILE"}},
		"a CA beside a certificate":      {[]string{"CERTCTL_TLS_CA_CERT_FILE=/x", "CERTCTL_TLS_CA_KEY_FILE=/x", "CERTCTL_TLS_CERT_FILE=/x", "CERTCTL_TLS_KEY_FILE=/x"}, []string{"only one"}},
		"a short internal secret":        {[]string{"CERTCTL_INTERNAL_SECRET=short"}, []string{"CERTCTL_INTERNAL_SECRET", "openssl rand"}},
		"a short join token":             {[]string{"CERTCTL_AGENT_JOIN_TOKEN=short"}, []string{"CERTCTL_AGENT_JOIN_TOKEN"}},
		"a short item of a list":         {[]string{"CERTCTL_INTERNAL_SECRET=0123456789abcdef,short"}, []string{"CERTCTL_INTERNAL_SECRET", "item 2 of 2"}},
		"an empty item of a list":        {[]string{"CERTCTL_DATABASE_ROLE_SECRET=old,,new"}, []string{"CERTCTL_DATABASE_ROLE_SECRET", "item 2 of 3 is empty"}},
		"an encryption key that is none": {[]string{"CERTCTL_ENCRYPTION_KEY=\nbase64?"}, []string{"CERTCTL_ENCRYPTION_KEY", "line 2", "openssl rand -base64 32"}},
		"a duration without its unit":    {[]string{"CERTCTL_DIGEST_INTERVAL=30"}, []string{"CERTCTL_DIGEST_INTERVAL"}},
		"an interval of nothing":         {[]string{"CERTCTL_DIGEST_INTERVAL=0s"}, []string{"CERTCTL_DIGEST_INTERVAL"}},
		"a misspelt variable":            {[]string{"CERTCTL_LISTEN_ADR=127.0.0.1:1"}, []string{"CERTCTL_LISTEN_ADR", "CERTCTL_LISTEN_ADDR"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(c.environ...)
			require.Error(t, err)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}

func TestASecretIsNotPrintedInAnError(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{
		"CERTCTL_INTERNAL_SECRET=hunter2", "CERTCTL_INTERNAL_SECRET=0123456789abcdef,hunter2", "CERTCTL_AGENT_JOIN_TOKEN=hunter2,0123456789abcdef",
		"CERTCTL_DATABASE_ROLE_SECRET=hunter2,", "CERTCTL_ENCRYPTION_KEY=hunter2",
	} {
		_, err := load(setting)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hunter2")
		require.NotContains(t, err.Error(), "0123456789abcdef")
	}
}

func TestSecretsMayBeLists(t *testing.T) {
	t.Parallel()
	key := "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	_, err := load("CERTCTL_INTERNAL_SECRET=0123456789abcdef, fedcba9876543210", "CERTCTL_AGENT_JOIN_TOKEN=0123456789abcdef,fedcba9876543210",
		"CERTCTL_DATABASE_ROLE_SECRET=new,old", "CERTCTL_ENCRYPTION_KEY="+key+","+key+"\n"+key)
	require.NoError(t, err)
}

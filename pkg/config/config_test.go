package config_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/secretbox"
)

type settings struct {
	Listen      string           `env:"CERTCTL_LISTEN_ADDR" envDefault:"127.0.0.1:8443" flag:"listen" help:"Where to listen." check:"address"`
	Interval    time.Duration    `env:"CERTCTL_JOB_TIMEOUT_INTERVAL" envDefault:"10m" help:"How often jobs are looked at." check:"duration>=1s"`
	Concurrency int              `env:"CERTCTL_RENEWAL_CONCURRENCY" envDefault:"25" flag:"concurrency" help:"Renewals at a time." check:"int 1..1000"`
	Auth        string           `env:"CERTCTL_AUTH_TYPE" envDefault:"api-key" help:"api-key | none" check:"oneof api-key none"`
	Fraction    float64          `env:"CERTCTL_FRACTION" envDefault:"0.5" check:"float 0..1"`
	Origins     []string         `env:"CERTCTL_ORIGINS" help:"Origins." check:"url https"`
	Quotas      map[string]int   `env:"CERTCTL_POOL_QUOTAS" help:"Connections." check:"int>=2"`
	Debug       bool             `env:"CERTCTL_DEBUG" help:"More logs."`
	Key         secretbox.Secret `env:"CERTCTL_AUTH_SECRET" help:"Keys."`
	TLS         tlsSettings      `envPrefix:"CERTCTL_TLS_"`
	notRead     string
}

type tlsSettings struct {
	Cert string `env:"CERT_PATH" help:"Certificate." check:"absolute"`
	Key  string `env:"KEY_PATH" help:"Key."`
}

func (s *tlsSettings) Validate() error {
	if (s.Cert == "") != (s.Key == "") {
		return errors.New("CERTCTL_TLS_CERT_PATH and CERTCTL_TLS_KEY_PATH go together")
	}
	return nil
}

func load(t *testing.T, environ ...string) (settings, []string, error) {
	t.Helper()
	var s settings
	warnings, err := config.Load(&s, environ, config.Options{})
	return s, warnings, err
}

func TestDefaultsHoldWithAnEmptyEnvironment(t *testing.T) {
	t.Parallel()
	s, warnings, err := load(t, "PATH=/bin", "CERTCTL_LISTEN_ADDR=")
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.Equal(t, settings{
		Listen: "127.0.0.1:8443", Interval: 10 * time.Minute, Concurrency: 25, Auth: "api-key", Fraction: 0.5,
	}, s)
	require.Empty(t, s.notRead)
}

func TestEveryKindOfValueIsRead(t *testing.T) {
	t.Parallel()
	s, _, err := load(t, "CERTCTL_LISTEN_ADDR=:443", "CERTCTL_JOB_TIMEOUT_INTERVAL=1m30s", "CERTCTL_RENEWAL_CONCURRENCY=1000",
		"CERTCTL_AUTH_TYPE=none", "CERTCTL_ORIGINS=https://a, https://b", "CERTCTL_POOL_QUOTAS=inventory=20,audit=4", "CERTCTL_DEBUG=true",
		"CERTCTL_AUTH_SECRET=a=b", "CERTCTL_TLS_CERT_PATH=/c", "CERTCTL_TLS_KEY_PATH=/k")
	require.NoError(t, err)
	require.Equal(t, settings{
		Listen: ":443", Interval: 90 * time.Second, Concurrency: 1000, Auth: "none", Fraction: 0.5,
		Origins: []string{"https://a", "https://b"}, Quotas: map[string]int{"inventory": 20, "audit": 4}, Debug: true,
		Key: secretbox.NewSecret("a=b"), TLS: tlsSettings{Cert: "/c", Key: "/k"},
	}, s)
}

func TestAValueThatIsNotRightStopsTheStartAndNamesTheVariable(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"CERTCTL_JOB_TIMEOUT_INTERVAL=30":      `CERTCTL_JOB_TIMEOUT_INTERVAL: "30" is not allowed; write a duration, such as 30s, 5m or 1h`,
		"CERTCTL_JOB_TIMEOUT_INTERVAL=10ms":    `CERTCTL_JOB_TIMEOUT_INTERVAL: "10ms" is not allowed; it must be at least 1s`,
		"CERTCTL_JOB_TIMEOUT_INTERVAL=-1h":     `at least 1s`,
		"CERTCTL_RENEWAL_CONCURRENCY=many":     `CERTCTL_RENEWAL_CONCURRENCY: "many" is not allowed; write a whole number`,
		"CERTCTL_RENEWAL_CONCURRENCY=0":        `it must be 1 to 1000`,
		"CERTCTL_RENEWAL_CONCURRENCY=1001":     `it must be 1 to 1000`,
		"CERTCTL_RENEWAL_CONCURRENCY= 5":       `whole number`,
		"CERTCTL_AUTH_TYPE=jwt":                `CERTCTL_AUTH_TYPE: "jwt" is not allowed; it must be one of api-key, none`,
		"CERTCTL_DEBUG=yes":                    `CERTCTL_DEBUG: "yes" is not allowed; write true or false`,
		"CERTCTL_FRACTION=1.1":                 `it must be 0 to 1`,
		"CERTCTL_LISTEN_ADDR=localhost":        `it must be host:port`,
		"CERTCTL_LISTEN_ADDR=localhost:999999": `it must be host:port`,
		"CERTCTL_ORIGINS=https://a,http://b":   `"http://b" is not allowed; it must be a URL with https`,
		"CERTCTL_POOL_QUOTAS=inventory=1":      `inventory: "1" is not allowed; it must be at least 2`,
		"CERTCTL_POOL_QUOTAS=inventory":        `write a list of name=value with commas`,
		"CERTCTL_TLS_CERT_PATH=c":              `it must be an absolute path`,
		"CERTCTL_TLS_CERT_PATH=/c":             `go together`,
	} {
		_, _, err := load(t, set)
		require.ErrorContains(t, err, want, set)
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, _, err := load(t, "CERTCTL_DEBUG=yes", "CERTCTL_FRACTION=2", "CERTCTL_AUTH_TYP=none")
	for _, want := range []string{"CERTCTL_DEBUG", "CERTCTL_FRACTION", "CERTCTL_AUTH_TYP:"} {
		require.ErrorContains(t, err, want)
	}
}

func TestFlagsWinOverVariablesAndAreNamedInErrors(t *testing.T) {
	t.Parallel()
	var s settings
	_, err := config.Load(&s, []string{"CERTCTL_RENEWAL_CONCURRENCY=7"}, config.Options{Flags: map[string]string{"concurrency": "9"}})
	require.NoError(t, err)
	require.Equal(t, 9, s.Concurrency)
	_, err = config.Load(&s, nil, config.Options{Flags: map[string]string{"concurrency": "x"}})
	require.ErrorContains(t, err, "--concurrency (CERTCTL_RENEWAL_CONCURRENCY)")
	_, err = config.Load(&s, nil, config.Options{Flags: map[string]string{"nothing": "x"}})
	require.ErrorContains(t, err, "--nothing")
}

func TestAMisspeltVariableIsRefusedWithTheNearestName(t *testing.T) {
	t.Parallel()
	_, _, err := load(t, "CERTCTL_JOB_TIMEOUT_INTERVALL=1h", "CERTCTL_LISTEN_ADR=:1")
	var unknown *config.UnknownVariablesError
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, []config.UnknownVariable{
		{Name: "CERTCTL_JOB_TIMEOUT_INTERVALL", Nearest: "CERTCTL_JOB_TIMEOUT_INTERVAL"},
		{Name: "CERTCTL_LISTEN_ADR", Nearest: "CERTCTL_LISTEN_ADDR"},
	}, unknown.Variables)
	require.ErrorContains(t, err, "did you mean CERTCTL_LISTEN_ADDR?")
}

func TestAVariableLikeNoneIsAWarning(t *testing.T) {
	t.Parallel()
	_, warnings, err := load(t, "CERTCTL_SOMETHING_ELSE=1", "CERTCTL_XYZ=1")
	require.NoError(t, err)
	require.Len(t, warnings, 2)
	require.Contains(t, warnings[0], "CERTCTL_SOMETHING_ELSE")
}

func TestKubernetesServiceLinksAreNoSettings(t *testing.T) {
	t.Parallel()
	_, warnings, err := load(t, "CERTCTL_GATEWAY_SERVICE_HOST=10.0.0.1", "CERTCTL_GATEWAY_SERVICE_PORT=8443", "CERTCTL_GATEWAY_SERVICE_PORT_HTTPS=8443",
		"CERTCTL_GATEWAY_PORT=tcp://10.0.0.1:8443", "CERTCTL_GATEWAY_PORT_8443_TCP=tcp://10.0.0.1:8443", "CERTCTL_GATEWAY_PORT_8443_TCP_ADDR=10.0.0.1")
	require.NoError(t, err)
	require.Empty(t, warnings)
}

func TestVariablesOfOtherProgramsAreKnown(t *testing.T) {
	t.Parallel()
	type client struct {
		URL string `env:"CERTCTL_URL"`
	}
	var c client
	warnings, err := config.Load(&c, []string{"CERTCTL_URL=x", "CERTCTL_LISTEN_ADDR=:1", "CERTCTL_AUTH_SECRET_FILE=/x"}, config.Options{Also: []any{settings{}}})
	require.NoError(t, err)
	require.Empty(t, warnings)
}

func secretFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestASecretMayComeFromAFile(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{"s": "s", "s\n": "s", "s\r\n": "s", "s\n\n": "s\n", " s ": " s "} {
		s, _, err := load(t, "CERTCTL_AUTH_SECRET_FILE="+secretFile(t, content))
		require.NoError(t, err)
		require.Equal(t, want, s.Key.Reveal())
	}
}

func TestASecretFileThatIsNotRightIsRefused(t *testing.T) {
	t.Parallel()
	_, _, err := load(t, "CERTCTL_AUTH_SECRET_FILE=/nowhere/secret")
	require.ErrorContains(t, err, "CERTCTL_AUTH_SECRET_FILE")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, _, err = load(t, "CERTCTL_AUTH_SECRET_FILE="+secretFile(t, "\n"))
	require.ErrorContains(t, err, "is empty")
	_, _, err = load(t, "CERTCTL_AUTH_SECRET=hunter2", "CERTCTL_AUTH_SECRET_FILE="+secretFile(t, "hunter2"))
	require.ErrorContains(t, err, "CERTCTL_AUTH_SECRET and CERTCTL_AUTH_SECRET_FILE are both set")
	require.NotContains(t, err.Error(), "hunter2")
}

func TestARequiredSettingMustBeSet(t *testing.T) {
	t.Parallel()
	type needs struct {
		URL    string           `env:"CERTCTL_URL" check:"required; url"`
		Secret secretbox.Secret `env:"CERTCTL_KEY" check:"required"`
	}
	_, err := config.Load(&needs{}, nil, config.Options{})
	require.ErrorContains(t, err, "CERTCTL_URL: is required and not set")
	require.ErrorContains(t, err, "CERTCTL_KEY: is required and not set")
	_, err = config.Load(&needs{}, []string{"CERTCTL_URL=https://x", "CERTCTL_KEY=k"}, config.Options{})
	require.NoError(t, err)
}

func TestMistakesOfTheProgramAreFound(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]any{
		"there is no such check": &struct {
			A string `env:"CERTCTL_A" check:"nice"`
		}{},
		"a range is needed": &struct {
			A int `env:"CERTCTL_A" check:"int 5"`
		}{},
		"default": &struct {
			A int `env:"CERTCTL_A" envDefault:"0" check:"int 1..5"`
		}{},
		"a secret has no flag": &struct {
			A secretbox.Secret `env:"CERTCTL_A" flag:"a"`
		}{},
		"CERTCTL_A is there twice": &struct {
			A string `env:"CERTCTL_A"`
			B string `env:"CERTCTL_A"`
		}{},
		"CERTCTL_A_FILE is there twice": &struct {
			A secretbox.Secret `env:"CERTCTL_A"`
			B string           `env:"CERTCTL_A_FILE"`
		}{},
		"write a check": &struct {
			A string `env:"CERTCTL_A,required"`
		}{},
		"a pointer to a struct is needed": settings{},
	} {
		_, err := config.Load(cfg, nil, config.Options{})
		require.ErrorContains(t, err, want)
	}
}

func TestTheDocumentIsWhole(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, config.Document(&b, "Server", settings{}, &settings{}))
	want := "## Server\n\n| variable | flag | default | meaning | allowed |\n|---|---|---|---|---|\n" +
		"| `CERTCTL_LISTEN_ADDR` | `--listen` | `127.0.0.1:8443` | Where to listen. | host:port |\n" +
		"| `CERTCTL_JOB_TIMEOUT_INTERVAL` |  | `10m` | How often jobs are looked at. | a duration, such as 30s, 5m or 1h; at least 1s |\n" +
		"| `CERTCTL_RENEWAL_CONCURRENCY` | `--concurrency` | `25` | Renewals at a time. | a whole number; 1 to 1000 |\n" +
		"| `CERTCTL_AUTH_TYPE` |  | `api-key` | api-key \\| none | one of api-key, none |\n" +
		"| `CERTCTL_FRACTION` |  | `0.5` |  | a number; 0 to 1 |\n" +
		"| `CERTCTL_ORIGINS` |  |  | Origins. | a list with commas; a URL with https |\n" +
		"| `CERTCTL_POOL_QUOTAS` |  |  | Connections. | a list of name=value with commas; at least 2 |\n" +
		"| `CERTCTL_DEBUG` |  |  | More logs. | true or false |\n" +
		"| `CERTCTL_AUTH_SECRET` or `CERTCTL_AUTH_SECRET_FILE` |  |  | Keys. | secret |\n" +
		"| `CERTCTL_TLS_CERT_PATH` |  |  | Certificate. | an absolute path |\n" +
		"| `CERTCTL_TLS_KEY_PATH` |  |  | Key. |  |\n"
	require.Equal(t, want, b.String())
}

package casimulator_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

func TestAScenarioIsRead(t *testing.T) {
	t.Parallel()
	s, err := casimulator.ParseScenario([]byte(`
latency: 30s
approval: 2m
clock: -24h
seed: 7
unlimited: true
faults:
  - ca: digicert
    operation: submit
    fault: drop_after
    common_name: www.example.com
    times: 1
  - fault: server_error
    status: 503
    retry_after: 20s
    retry_after_date: true
    probability: 0.05
`))
	require.NoError(t, err)
	require.Equal(t, casimulator.Scenario{
		Latency: 30 * time.Second, Approval: casimulator.Approval{Needed: true, After: 2 * time.Minute}, Clock: -24 * time.Hour, Seed: 7, Unlimited: true,
		Faults: []casimulator.Fault{
			{CA: "digicert", Operation: "submit", Kind: casimulator.DropAfter, CommonName: "www.example.com", Times: 1},
			{Kind: casimulator.ServerError, Status: 503, RetryAfter: 20 * time.Second, RetryAfterDate: true, Probability: 0.05},
		},
	}, s)
	empty, err := casimulator.ParseScenario(nil)
	require.NoError(t, err)
	require.Zero(t, empty)
}

func TestAScenarioWithAMistakeIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"latency: 30s\ncolour: red":                             "line 2: field colour not found",
		"faults:\n  - fault: hang\n    delai: 5s":               "line 3: field delai not found",
		"approval: perhaps":                                     "line 1: approval",
		"approval: -5s":                                         "line 1: approval",
		"latency: -5s":                                          "latency is negative",
		"latency: soon":                                         "line 1",
		"faults: [{fault: earthquake}]":                         `faults, number 1: fault "earthquake": there is none`,
		"faults: [{}]":                                          "there is none",
		"faults: [{fault: hang, ca: nobody}]":                   `there is no ca "nobody"`,
		"faults: [{fault: hang, operation: dance}]":             `there is no operation "dance"`,
		"faults: [{fault: hang, probability: 2}]":               "probability",
		"faults: [{fault: hang, probability: .nan}]":            "probability",
		"faults: [{fault: hang, times: -1}]":                    "times",
		"faults: [{fault: hang, status: 500}]":                  "it has no status",
		"faults: [{fault: server_error, status: 404}]":          "status is not between",
		"faults: [{fault: client_error, status: 500}]":          "status is not between 400 and 499",
		"faults: [{fault: hang, code: busy}]":                   "it has no code",
		"faults: [{fault: client_error, ca: sectigo, code: a}]": "is no number",
		"faults: [{fault: oversized_body, bytes: 9999999999}]":  "bytes is not between",
		"latency: 1s\n---\nlatency: 2s":                         "more than one document",
	} {
		_, err := casimulator.ParseScenario([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
	_, err := casimulator.ParseScenario([]byte(strings.Repeat("#", 2<<20)))
	require.ErrorContains(t, err, "longer than")
}

func TestAScenarioFileIsRead(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/scenario.yaml"
	require.NoError(t, os.WriteFile(path, []byte("latency: 1s\nbad: 1\n"), 0o600))
	_, err := casimulator.ReadScenario(path)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "line 2")
	_, err = casimulator.ReadScenario(path + ".none")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzParseScenario(f *testing.F) {
	f.Add("latency: 30s\napproval: manual\nfaults: [{fault: hang, ca: digicert, times: 1, probability: 0.5}]")
	f.Add("globalsign: {key_format: PKCS8}")
	f.Add("&a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := casimulator.ParseScenario([]byte(text))
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		for _, fault := range s.Faults {
			require.Contains(t, casimulator.Kinds(), fault.Kind)
		}
	})
}

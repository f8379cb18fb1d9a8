package targettest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Name is the DNS name of the suite's certificates.
const Name = "www.example.com"

// Fixture is one server under test, running, with a first certificate in place. Fullchain and Key are the files that the
// suite looks at; either may be a combined file, then both are the same.
type Fixture struct {
	Type      string
	Config    json.RawMessage
	Endpoint  target.Endpoint
	Fullchain string
	Key       string
	Allow     target.AllowList
	// Steps are the labels at which the suite fails and kills a deployment.
	Steps []string
	// Put places material without any engine and has the server read it.
	Put func(t testing.TB, m target.Material)
	// Reloads counts how often the server was told to reload.
	Reloads func() int
	// Reload has the server read its files as somebody else would; nil if there is no server.
	Reload func()
}

// AfterSwap tells whether a step comes after the first change to a live file.
func AfterSwap(step string) bool {
	switch step {
	case "stage", "validate", "journal":
		return false
	default:
		return true
	}
}

// Steps gives the labels of a deployment with a number of files.
func Steps(files int) []string {
	list := []string{"stage", "validate", "journal"}
	for i := range files {
		list = append(list, "swap-"+string(rune('1'+i)))
	}
	return append(list, "fsync", "reload", "verify", "commit")
}

// Run has a connector pass the suite. The function makes a fixture for each case.
func Run(t *testing.T, fixture func(t *testing.T) Fixture) {
	t.Helper()
	cases := map[string]func(*testing.T, *bench){
		"a configuration is checked by shape and strictly":       strictConfig,
		"a deployment is served and leaves nothing behind":       served,
		"the same again changes nothing and reloads nothing":     idempotent,
		"bytes and modes that drifted are mended":                drift,
		"a reload that is not known to have worked is repeated":  missedReload,
		"bad material is refused before anything is written":     badMaterial,
		"a failure at any step leaves or brings back the old":    rollback,
		"a process killed at any step leaves a state to mend":    killed,
		"deployments to one target at the same time do not mix":  concurrent,
		"an older version can be deployed again":                 backAndForth,
		"files of somebody else after a crash are not replaced":  changedMeanwhile,
		"a file that is no PEM is not replaced at first contact": noPEM,
	}
	for name, run := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, newBench(t, fixture(t)))
		})
	}
}

// bench is a fixture with what a case needs around it.
type bench struct {
	Fixture
	ca      *Authority
	journal string
	old     target.Material
}

func newBench(t *testing.T, f Fixture) *bench {
	t.Helper()
	b := &bench{Fixture: f, ca: NewAuthority(t), journal: t.TempDir()}
	b.old = b.ca.Issue(t, Name)
	b.Put(t, b.old)
	return b
}

func (b *bench) engine(t *testing.T, hook func(string) error) *target.Engine {
	t.Helper()
	e, err := target.NewEngine(target.Config{
		JournalDir: b.journal, Allow: b.Allow, Hook: hook,
		Timeouts: target.Timeouts{Verify: 5 * time.Second},
	}, target.Deps{})
	require.NoError(t, err)
	return e
}

func (b *bench) request(m target.Material) target.Request {
	return target.Request{TargetID: "target-1", Type: b.Type, Config: b.Config, Endpoint: b.Endpoint, Material: m, Version: "1"}
}

// serves makes sure of the certificate on disk, that its key fits, and of what the endpoint shows.
func (b *bench) serves(t *testing.T, m target.Material) {
	t.Helper()
	require.Equal(t, Fingerprint(t, m), b.pair(t))
	got, err := b.engine(t, nil).Verify(t.Context(), target.VerifyRequest{Type: b.Type, Config: b.Config, Endpoint: b.Endpoint, Names: m.Names})
	require.NoError(t, err)
	require.Equal(t, Fingerprint(t, m), got.FingerprintSHA256)
	require.Len(t, got.Chain, 2, "the intermediate must be there")
}

// pair gives the fingerprint of the certificate on disk, whose key must fit.
func (b *bench) pair(t *testing.T) string {
	t.Helper()
	full, err := os.ReadFile(b.Fullchain)
	require.NoError(t, err)
	key, err := os.ReadFile(b.Key)
	require.NoError(t, err)
	certificates, _, combined := strings.Cut(string(full), "-----BEGIN PRIVATE KEY")
	if combined {
		key = []byte(strings.TrimPrefix(string(full), certificates))
	}
	leaf, _, err := target.ParseChain([]byte(certificates))
	require.NoError(t, err)
	require.NoError(t, target.KeyFits(leaf, key))
	return fingerprint(leaf.Raw)
}

// clean makes sure that no temporary file is left.
func (b *bench) clean(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{filepath.Dir(b.Fullchain) + "/.certctl-*", filepath.Dir(b.Key) + "/.certctl-*", b.journal + "/*/journal.json", b.journal + "/*/check-*"} {
		left, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func strictConfig(t *testing.T, b *bench) {
	c, err := target.New(b.Type)
	require.NoError(t, err)
	require.NoError(t, c.Validate(b.Config))
	p, err := c.Plan(b.Config)
	require.NoError(t, err)
	require.NotEmpty(t, p.Files)
	for _, f := range p.Files {
		require.True(t, filepath.IsAbs(f.Path), f.Path)
	}
	var fields map[string]any
	require.NoError(t, json.Unmarshal(b.Config, &fields))
	for key, value := range map[string]any{"no_such_field": 1, "KEY_PATH": "/x", "key_path": "relative", "mode": "9", "key_mode": "0644", "owner": "a:b", "fullchain_path": "/a/../b"} {
		broken := map[string]any{}
		for k, v := range fields {
			broken[k] = v
		}
		broken[key] = value
		raw, err := json.Marshal(broken)
		require.NoError(t, err)
		err = c.Validate(raw)
		require.Equal(t, errs.Invalid, errs.KindOf(err), key)
		require.True(t, slices.ContainsFunc(errs.From(err).Violations(), func(v errs.Violation) bool { return v.Field == "config."+key }), "%s: %s", key, err)
	}
	for _, raw := range []string{``, `null`, `[]`, `{}`, `"x"`, `{"key_path":1}`, `{"a":`} {
		require.Equal(t, errs.Invalid, errs.KindOf(c.Validate([]byte(raw))), raw)
	}
}

func served(t *testing.T, b *bench) {
	m := b.ca.Issue(t, Name)
	before := b.Reloads()
	result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	require.Equal(t, target.OutcomeServed, result.Outcome)
	require.True(t, result.Reloaded)
	require.Empty(t, result.Step)
	require.Equal(t, Fingerprint(t, m), result.Served.FingerprintSHA256)
	require.Len(t, result.Served.Chain, 2)
	require.False(t, result.Served.NotAfter.IsZero())
	require.Eventually(t, func() bool { return b.Reloads() == before+1 }, 5*time.Second, 5*time.Millisecond)
	b.serves(t, m)
	b.clean(t)
	info, err := os.Stat(b.Key)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func idempotent(t *testing.T, b *bench) {
	m := b.ca.Issue(t, Name)
	_, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	before, info := b.Reloads(), stat(t, b.Key)
	result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	require.Equal(t, target.OutcomeUnchanged, result.Outcome)
	require.False(t, result.Reloaded)
	require.Equal(t, before, b.Reloads())
	require.True(t, os.SameFile(info, stat(t, b.Key)), "the file was written again")

	forced := b.request(m)
	forced.Force = true
	result, err = b.engine(t, nil).Deploy(t.Context(), forced)
	require.NoError(t, err)
	require.True(t, result.Reloaded, "a forced deployment reloads")
	require.True(t, os.SameFile(info, stat(t, b.Key)), "the file was written again")
	b.serves(t, m)
}

func drift(t *testing.T, b *bench) {
	m := b.ca.Issue(t, Name)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(b.Config, &fields))
	fields["key_mode"] = "0640"
	raw, err := json.Marshal(fields)
	require.NoError(t, err)
	b.Config = raw
	spoil := map[string]func(){
		"nothing": func() {},
		"mode":    func() { require.NoError(t, os.Chmod(b.Key, 0o600)) },
		"bytes":   func() { require.NoError(t, os.WriteFile(b.Fullchain, []byte("not a certificate"), 0o600)) },
		"absence": func() { require.NoError(t, os.Remove(b.Key)) },
	}
	for _, what := range []string{"nothing", "mode", "bytes", "absence"} {
		spoil[what]()
		result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
		require.NoError(t, err, what)
		require.Equal(t, target.OutcomeServed, result.Outcome, what)
		b.serves(t, m)
		require.Equal(t, os.FileMode(0o640), stat(t, b.Key).Mode().Perm(), what)
		b.clean(t)
	}
}

func missedReload(t *testing.T, b *bench) {
	m := b.ca.Issue(t, Name)
	_, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(b.journal, "target-1", "state.json")))
	before := b.Reloads()
	result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	require.Equal(t, target.OutcomeUnchanged, result.Outcome)
	require.True(t, result.Reloaded)
	require.Eventually(t, func() bool { return b.Reloads() == before+1 }, 5*time.Second, 5*time.Millisecond)
}

func badMaterial(t *testing.T, b *bench) {
	good := b.ca.Issue(t, Name)
	past := time.Now().Add(-time.Hour)
	other := NewAuthority(t)
	bad := map[string]target.Material{
		"KEY_DOES_NOT_FIT": with(good, func(m *target.Material) { m.Key = KeyPEM(t, NewKey(t)) }),
		"KEY_UNREADABLE": with(good, func(m *target.Material) {
			m.Key = secretbox.NewSecret("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
		}),
		"CHAIN_BROKEN":              with(good, func(m *target.Material) { m.ChainPEM = PEM(other.Intermediate) }),
		"CERTIFICATE_NOT_VALID_NOW": b.ca.IssueFor(t, NewKey(t), past, past.Add(time.Minute), Name),
		"CERTIFICATE_UNREADABLE":    with(good, func(m *target.Material) { m.ChainPEM = []byte("-----BEGIN CERTIFICATE-----\nx") }),
		"NAME_NOT_COVERED":          with(b.ca.Issue(t, "other.example.com"), func(m *target.Material) { m.Names = []string{Name} }),
	}
	before := b.Reloads()
	for reason, m := range bad {
		result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
		require.Equal(t, reason, errs.ReasonOf(err))
		require.Equal(t, errs.Invalid, errs.KindOf(err), reason)
		require.Equal(t, "preflight", errs.MetaOf(err)["step"])
		require.Equal(t, target.OutcomeUntouched, result.Outcome)
		b.serves(t, b.old)
		b.clean(t)
	}
	require.Equal(t, before, b.Reloads())
}

func rollback(t *testing.T, b *bench) {
	for _, step := range b.Steps {
		looks := [2]os.FileMode{stat(t, b.Fullchain).Mode(), stat(t, b.Key).Mode()}
		e := b.engine(t, func(label string) error {
			if label == step {
				return errors.New("made to fail")
			}
			return nil
		})
		result, err := e.Deploy(t.Context(), b.request(b.ca.Issue(t, Name)))
		require.ErrorContains(t, err, "made to fail", step)
		require.Equal(t, strings.TrimRight(step, "-123456789"), string(result.Step))
		require.Equal(t, AfterSwap(step), result.RolledBack, step)
		require.Equal(t, AfterSwap(step), result.Outcome == target.OutcomeRolledBack, step)
		if b.Endpoint.Address != "" {
			require.Equal(t, AfterSwap(step), result.RollbackVerified, step)
		}
		b.serves(t, b.old)
		now := [2]os.FileMode{stat(t, b.Fullchain).Mode(), stat(t, b.Key).Mode()}
		require.Equal(t, looks, now)
		b.clean(t)
	}
}

func killed(t *testing.T, b *bench) {
	for _, step := range b.Steps {
		m := b.ca.Issue(t, Name)
		DeployAndDie(t, b.journal, b.Allow, b.request(m), step)
		b.serverSurvives(t, m)
		e := b.engine(t, nil)
		require.NoError(t, e.Recover(t.Context()), step)
		b.clean(t)
		if AfterSwap(step) || step == "journal" {
			b.serves(t, m)
		} else {
			b.serves(t, b.old)
		}
		result, err := e.Deploy(t.Context(), b.request(m))
		require.NoError(t, err, step)
		require.Equal(t, step == "stage" || step == "validate", result.Outcome == target.OutcomeServed, step)
		b.serves(t, m)
		b.clean(t)
		b.old = m
	}
}

// serverSurvives has somebody else reload the server while the files may not fit: it must go on serving one of the two.
func (b *bench) serverSurvives(t *testing.T, m target.Material) {
	t.Helper()
	if b.Reload == nil {
		return
	}
	b.Reload()
	got, err := b.engine(t, nil).Verify(t.Context(), target.VerifyRequest{Endpoint: b.Endpoint, Names: m.Names})
	require.NoError(t, err)
	require.Contains(t, []string{Fingerprint(t, b.old), Fingerprint(t, m)}, got.FingerprintSHA256)
}

func concurrent(t *testing.T, b *bench) {
	e := b.engine(t, nil)
	list := []target.Material{b.ca.Issue(t, Name), b.ca.Issue(t, Name), b.ca.Issue(t, Name)}
	failed := make([]error, len(list))
	var all sync.WaitGroup
	for i, m := range list {
		all.Go(func() {
			r := b.request(m)
			r.TargetID = []string{"target-1", "target-1", "target-2"}[i]
			_, failed[i] = e.Deploy(t.Context(), r)
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(failed...))
	require.Contains(t, []string{Fingerprint(t, list[0]), Fingerprint(t, list[1]), Fingerprint(t, list[2])}, b.pair(t))
	b.clean(t)
}

func backAndForth(t *testing.T, b *bench) {
	first, second := b.ca.Issue(t, Name), b.ca.Issue(t, Name)
	for _, m := range []target.Material{first, second, first} {
		result, err := b.engine(t, nil).Deploy(t.Context(), b.request(m))
		require.NoError(t, err)
		require.Equal(t, target.OutcomeServed, result.Outcome)
		b.serves(t, m)
	}
}

func changedMeanwhile(t *testing.T, b *bench) {
	DeployAndDie(t, b.journal, b.Allow, b.request(b.ca.Issue(t, Name)), "swap-1")
	theirs := b.ca.Issue(t, Name)
	b.Put(t, theirs)
	require.NoError(t, b.engine(t, nil).Recover(t.Context()))
	b.serves(t, theirs)
	b.clean(t)
}

func noPEM(t *testing.T, b *bench) {
	require.NoError(t, os.WriteFile(b.Fullchain, []byte("root:x:0:0\n"), 0o644))
	_, err := b.engine(t, nil).Deploy(t.Context(), b.request(b.ca.Issue(t, Name)))
	require.Equal(t, "PATH_REFUSED", errs.ReasonOf(err))
	text, err := os.ReadFile(b.Fullchain)
	require.NoError(t, err)
	require.Equal(t, "root:x:0:0\n", string(text))
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info
}

func with(m target.Material, change func(*target.Material)) target.Material {
	change(&m)
	return m
}

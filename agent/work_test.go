package agent_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

func csrWork(certificate string) *agentv1.Assignment {
	return &agentv1.Assignment{Work: &agentv1.Assignment_CreateCsr{CreateCsr: &agentv1.CreateCsr{
		CertificateId: certificate, KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256,
		Names: &typev1.Names{CommonName: "www.example.com", DnsNames: []string{"www.example.com"}, IpAddresses: []string{"192.0.2.7", "2001:db8::7"},
			EmailAddresses: []string{"web@example.com"}, Uris: []string{"spiffe://example.com/web"}},
	}}}
}

// issuer is a CA that signs what it is asked for.
type issuer struct {
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
}

func newIssuer(t testing.TB) issuer {
	ca, key := newCA(t, "issuer")
	return issuer{ca, key}
}

// version is a certificate for a CSR.
type version struct {
	pem, chain, publicKey, fingerprint string
}

func parseCSR(t testing.TB, text string) *x509.CertificateRequest {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	require.NotNil(t, block)
	require.Empty(t, rest)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	require.NoError(t, err)
	require.NoError(t, csr.CheckSignature())
	return csr
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (i issuer) sign(t testing.TB, c *agentv1.CsrResult) version {
	t.Helper()
	csr := parseCSR(t, c.GetCsrPem())
	require.Equal(t, hexSum(csr.RawSubjectPublicKeyInfo), c.GetPublicKeySha256())
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: csr.Subject, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, i.ca, csr.PublicKey, i.key)
	require.NoError(t, err)
	return version{pem: string(pemOf(der)), chain: string(pemOf(i.ca.Raw)), publicKey: c.GetPublicKeySha256(), fingerprint: hexSum(der)}
}

// certify has the agent make a key for a certificate and signs it.
func (s *server) certify(certificate string) version {
	s.t.Helper()
	return newIssuer(s.t).sign(s.t, s.result(s.add(csrWork(certificate))).GetCsr())
}

// place is a file target.
type place struct {
	dir, id string
	command []string
}

func newPlace(t testing.TB, id string) *place { return &place{dir: t.TempDir(), id: id} }

func (p *place) target(t testing.TB) *agentv1.Target {
	t.Helper()
	b, err := json.Marshal(map[string]any{"fullchain_path": p.fullchain(), "key_path": filepath.Join(p.dir, "tls.key"), "command": p.command})
	require.NoError(t, err)
	return &agentv1.Target{Id: p.id, Type: "file", Config: string(b)}
}

func (p *place) fullchain() string { return filepath.Join(p.dir, "tls.crt") }

func (p *place) deploy(t testing.TB, certificate string, v version) *agentv1.Assignment {
	t.Helper()
	return &agentv1.Assignment{Work: &agentv1.Assignment_Deploy{Deploy: &agentv1.Deploy{DeploymentId: "dep-1", CertificateId: certificate, Version: 1,
		Target: p.target(t), CertificatePem: v.pem, ChainPem: v.chain, PublicKeySha256: v.publicKey, FingerprintSha256: v.fingerprint}}}
}

// names lists what is in the directory.
func (p *place) names(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir(p.dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// gate is a command that waits for a word.
type gate struct {
	dir  string
	fifo *os.File
}

func newGate(t testing.TB) *gate {
	t.Helper()
	g := &gate{dir: t.TempDir()}
	path := filepath.Join(g.dir, "fifo")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	var err error
	// Held open for both directions, so that neither side waits for the other to open it.
	g.fifo, err = os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = g.fifo.Close() })
	return g
}

func (g *gate) command() []string {
	return []string{"/bin/sh", "-c", `echo x >> "$1/runs"; [ -e "$1/open" ] || read -r word < "$1/fifo"`, "gate", g.dir}
}

// runs is how often the command was started.
func (g *gate) runs() int {
	b, _ := os.ReadFile(filepath.Join(g.dir, "runs"))
	return strings.Count(string(b), "x")
}

// open lets all that waits go on, and what comes later pass.
func (g *gate) open(t testing.TB) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(g.dir, "open"), nil, 0o600))
	_, err := g.fifo.WriteString(strings.Repeat("go\n", 64))
	require.NoError(t, err)
}

func TestAnAgentMakesAKeyAndACSRForAllKindsOfNames(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	for name, algorithm := range typev1.KeyAlgorithm_value {
		a := csrWork("cert-" + strings.ReplaceAll(strings.ToLower(name), "_", "-"))
		a.GetCreateCsr().KeyAlgorithm = typev1.KeyAlgorithm(algorithm)
		csr := parseCSR(t, s.result(s.add(a)).GetCsr().GetCsrPem())
		require.Equal(t, "www.example.com", csr.Subject.CommonName, name)
		require.Equal(t, []string{"www.example.com"}, csr.DNSNames)
		require.Len(t, csr.IPAddresses, 2)
		require.Equal(t, "192.0.2.7", csr.IPAddresses[0].String())
		require.Equal(t, []string{"web@example.com"}, csr.EmailAddresses)
		require.Equal(t, "spiffe://example.com/web", csr.URIs[0].String())
	}
	keys := 0
	require.NoError(t, filepath.WalkDir(filepath.Join(cfg.DataDir, "keys"), func(path string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			require.Equal(t, "0700", fileMode(t, path))
			return nil
		}
		keys++
		require.Equal(t, "0600", fileMode(t, path))
		return nil
	}))
	require.Equal(t, len(typev1.KeyAlgorithm_value), keys)
}

func TestARepeatedCSRAssignmentHasTheSameAnswer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	r := connect(t, s, cfg)
	e := s.add(csrWork("cert-1"))
	first := s.result(e).GetCsr()
	s.reopen(e)
	require.Equal(t, first.GetCsrPem(), s.result(e).GetCsr().GetCsrPem())
	require.NoError(t, r.stop())
	connect(t, s, cfg)
	s.reopen(e)
	require.Equal(t, first.GetCsrPem(), s.result(e).GetCsr().GetCsrPem(), "after a restart, too")
	require.Len(t, e.results, 3)
	require.NotEqual(t, e.results[0].GetLeaseId(), e.results[2].GetLeaseId())

	require.NoError(t, os.RemoveAll(filepath.Join(cfg.DataDir, "keys", "cert-1")))
	s.reopen(e)
	require.NotEqual(t, first.GetPublicKeySha256(), s.result(e).GetCsr().GetPublicKeySha256(), "no CSR without its key")
}

func TestIdsThatArePathsAreRefusedForGood(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	v := s.certify("cert-1")
	traversal := newPlace(t, "../../escaped")
	bad := []*agentv1.Assignment{csrWork("../cert"), csrWork("/etc"), csrWork(".."), csrWork(""), csrWork("Cert"), newPlace(t, "target-1").deploy(t, "../keys/cert-1", v), traversal.deploy(t, "cert-1", v)}
	twisted := csrWork("cert-2")
	twisted.Id = "../../twisted"
	bad = append(bad, twisted)
	for _, a := range bad {
		f := s.result(s.add(a)).GetFailure()
		require.NotNil(t, f, a)
		require.True(t, f.GetPermanent(), f)
	}
	require.ElementsMatch(t, []string{"deployments", "identity", "journal", "keys", "lock"}, (&place{dir: cfg.DataDir}).names(t))
	require.Equal(t, []string{"cert-1"}, (&place{dir: filepath.Join(cfg.DataDir, "keys")}).names(t))
	require.Equal(t, []string{"agent"}, (&place{dir: filepath.Dir(cfg.DataDir)}).names(t))
}

func TestACertificateIsDeployedEndToEnd(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	p := newPlace(t, "target-1")
	v := s.certify("cert-1")
	d := s.result(s.add(p.deploy(t, "cert-1", v))).GetDeploy()
	require.NotNil(t, d)
	require.Equal(t, v.fingerprint, d.GetServedFingerprintSha256())
	require.False(t, d.GetUnchanged())
	require.Empty(t, d.GetVerifiedAddress(), "there is no endpoint: the files were read back")
	require.Equal(t, v.pem+v.chain, read(t, p.fullchain()))
	require.Equal(t, "0600", fileMode(t, filepath.Join(p.dir, "tls.key")))
	require.Equal(t, []string{"tls.crt", "tls.key"}, p.names(t))

	again := s.result(s.add(p.deploy(t, "cert-1", v))).GetDeploy()
	require.True(t, again.GetUnchanged())

	renewed := s.certify("cert-1")
	require.NotEqual(t, v.publicKey, renewed.publicKey, "a new key each time")
	require.Equal(t, renewed.fingerprint, s.result(s.add(p.deploy(t, "cert-1", renewed))).GetDeploy().GetServedFingerprintSha256())

	seen := s.result(s.add(&agentv1.Assignment{Work: &agentv1.Assignment_Verify{Verify: &agentv1.Verify{DeploymentId: "dep-1", Target: p.target(t), FingerprintSha256: renewed.fingerprint}}}))
	require.Equal(t, renewed.fingerprint, seen.GetDeploy().GetServedFingerprintSha256())
	require.Equal(t, v.fingerprint, s.result(s.add(p.deploy(t, "cert-1", v))).GetDeploy().GetServedFingerprintSha256(), "the version before can be deployed again")
}

func TestAFailureSaysWhereAndWhetherAnotherTryHelps(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	v := s.certify("cert-1")
	p := newPlace(t, "target-1")
	require.NotNil(t, s.result(s.add(p.deploy(t, "cert-1", v))).GetDeploy())

	p.command = []string{"/bin/sh", "-c", `printf 'no \377 good'; exit 1`}
	renewed := s.certify("cert-1")
	f := s.result(s.add(p.deploy(t, "cert-1", renewed))).GetFailure()
	require.Equal(t, "reload", f.GetStep())
	require.True(t, f.GetRolledBack())
	require.False(t, f.GetPermanent())
	require.Equal(t, "COMMAND_FAILED", f.GetProblem().GetReason())
	require.Contains(t, f.GetProblem().GetMessage(), "good")
	require.Equal(t, v.pem+v.chain, read(t, p.fullchain()), "the old certificate is back")

	p.command = []string{"/bin/true"}
	f = s.result(s.add(p.deploy(t, "cert-1", renewed))).GetFailure()
	require.Equal(t, "preflight", f.GetStep())
	require.Equal(t, "COMMAND_NOT_ALLOWED", f.GetProblem().GetReason())
	require.True(t, f.GetPermanent(), "only the host's operator can help")
	require.False(t, f.GetRolledBack())

	p.command = nil
	f = s.result(s.add(p.deploy(t, "cert-other", renewed))).GetFailure()
	require.Equal(t, "KEY_NOT_FOUND", f.GetProblem().GetReason())
	require.True(t, f.GetPermanent())

	missing := &place{dir: filepath.Join(p.dir, "missing"), id: "target-2"}
	f = s.result(s.add(missing.deploy(t, "cert-1", renewed))).GetFailure()
	require.Equal(t, "preflight", f.GetStep())
	require.False(t, f.GetPermanent(), "somebody may make the directory")

	f = s.result(s.add(&agentv1.Assignment{Work: &agentv1.Assignment_Verify{Verify: &agentv1.Verify{DeploymentId: "dep-2", Target: missing.target(t)}}})).GetFailure()
	require.Equal(t, "verify", f.GetStep())

	f = s.result(s.add(&agentv1.Assignment{})).GetFailure()
	require.Equal(t, "UNKNOWN_WORK", f.GetProblem().GetReason())

	a := csrWork("cert-1")
	a.GetCreateCsr().Names.IpAddresses = []string{"not-an-address"}
	f = s.result(s.add(a)).GetFailure()
	require.Equal(t, "NAMES_INVALID", f.GetProblem().GetReason())
	require.True(t, f.GetPermanent())

	a = csrWork("cert-1")
	a.GetCreateCsr().KeyAlgorithm = 99
	require.True(t, s.result(s.add(a)).GetFailure().GetPermanent())
}

func TestALostReportIsRepeated(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	lost := 0
	s.do(func() {
		s.afterReport = func(*agentv1.ReportAssignmentRequest) error {
			lost++
			if lost < 3 {
				return unavailable()
			}
			return nil
		}
	})
	e := s.add(csrWork("cert-1"))
	eventually(t, s.see(func() bool { return len(e.results) == 3 }), "the report comes until its answer does")
	require.NotNil(t, s.certify("cert-2"), "and then the agent goes on")
}

func TestAReportUnderALapsedLeaseIsLeftUntilTheWorkIsOfferedAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := connect(t, s, config(t, s))
	p := newPlace(t, "target-1")
	v := s.certify("cert-1")
	g := newGate(t)
	p.command = g.command()
	e := s.add(p.deploy(t, "cert-1", v))
	eventually(t, func() bool { return g.runs() == 1 }, "the deployment runs")
	s.do(func() { e.leased = false })
	g.open(t)
	eventually(t, r.logged("report came too late, the server has moved on"), "the report is stale")
	require.Empty(t, e.results)
	s.reopen(e)
	require.True(t, s.result(e).GetDeploy().GetUnchanged(), "done again, it changes nothing")
}

func TestWorkThatIsOfferedAgainWhileItRunsIsReportedUnderItsNewestLease(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	v := s.certify("cert-1")
	p, g := newPlace(t, "target-1"), newGate(t)
	p.command = g.command()
	e := s.add(p.deploy(t, "cert-1", v))
	eventually(t, func() bool { return g.runs() == 1 }, "the deployment runs")
	old := ""
	s.do(func() { old = e.GetLeaseId() })
	for range s.listed {
		if len(s.listed) == 0 {
			break
		}
	}
	s.reopen(e)
	<-s.listed
	g.open(t)
	report := s.result(e)
	require.NotEqual(t, old, report.GetLeaseId())
	require.NotNil(t, report.GetDeploy())
	require.Equal(t, 1, g.runs(), "it ran once")
	require.Len(t, e.results, 1)
}

func TestTheLeaseOfALongDeploymentIsMadeLonger(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	v := s.certify("cert-1")
	s.do(func() { s.lease = 3 * time.Second })
	p, g := newPlace(t, "target-1"), newGate(t)
	p.command = g.command()
	e := s.add(p.deploy(t, "cert-1", v))
	eventually(t, s.see(func() bool { return e.progress >= 2 }), "two words of progress")
	lease := ""
	s.do(func() { lease = e.GetLeaseId(); e.leased = false })
	eventually(t, s.see(func() bool { return e.GetLeaseId() != lease }), "a lapsed lease is noticed, and work asked for without a hint")
	g.open(t)
	require.NotNil(t, s.result(e).GetDeploy())
	require.Equal(t, 1, g.runs())
}

func TestKeysDoNotWaitForSlowDeployments(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	v := s.certify("cert-1")
	g := newGate(t)
	var slow []*entry
	for i := range 20 {
		p := newPlace(t, "target-"+string(rune('a'+i)))
		p.command = g.command()
		slow = append(slow, s.add(p.deploy(t, "cert-1", v)))
	}
	eventually(t, func() bool { return g.runs() == 8 }, "as many run as may")
	s.certify("cert-2")
	require.Equal(t, 8, g.runs())
	g.open(t)
	for _, e := range slow {
		require.NotNil(t, s.result(e).GetDeploy())
	}
}

func TestAMailboxOfAnySizeIsEmptied(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var all []*entry
	for range 300 {
		all = append(all, s.add(csrWork("cert-1")))
	}
	connect(t, s, config(t, s))
	for _, e := range all {
		require.NotNil(t, s.result(e).GetCsr())
		require.Len(t, e.results, 1)
		require.Equal(t, int32(1), e.GetAttempt())
	}
}

func TestAHintStartsWorkAtOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	var took []time.Duration
	for range 21 {
		for len(s.listed) > 0 {
			<-s.listed
		}
		began := time.Now()
		e := s.add(csrWork("cert-1"))
		<-s.listed
		took = append(took, time.Since(began))
		s.result(e)
	}
	slices.Sort(took)
	require.Less(t, took[len(took)/2], 50*time.Millisecond, "the median from hint to pickup")
}

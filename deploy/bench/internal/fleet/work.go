package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// batch is how many assignments are asked for at once.
const batch = 64

// fetch asks for work; when that is being done already, once more after it.
func (a *agent) fetch(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fetching {
		a.again = true
		return
	}
	a.fetching = true
	a.work.Go(func() {
		for {
			if err := a.fetchAll(ctx); err != nil && ctx.Err() == nil {
				a.failed.Add(1)
				a.log.Warn("asking for work failed", zap.String("agent_id", a.id), zap.Error(err))
			}
			if !a.more() {
				return
			}
		}
	})
}

func (a *agent) more() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fetching, a.again = a.again, false
	return a.fetching
}

func (a *agent) fetchAll(ctx context.Context) error {
	for after := int64(0); ; {
		list, err := a.list(ctx, after)
		if err != nil {
			return err
		}
		last := after
		for _, w := range list.GetAssignments() {
			last = max(last, w.GetRevision())
			a.take(ctx, w)
		}
		if !list.GetMore() || last == after {
			return nil
		}
		after = last
	}
}

func (a *agent) list(ctx context.Context, after int64) (*agentv1.ListAssignmentsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.client.ListAssignments(ctx, &agentv1.ListAssignmentsRequest{AfterRevision: after, MaxAssignments: batch})
}

// take starts an assignment that is not in hand yet.
func (a *agent) take(ctx context.Context, w *agentv1.Assignment) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inHand[w.GetId()] {
		return
	}
	a.inHand[w.GetId()] = true
	if id := certificateOf(w); id != "" {
		a.begun(id, now)
	}
	a.work.Go(func() {
		err := a.do(ctx, w)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.inHand, w.GetId())
		if err != nil && ctx.Err() == nil {
			a.failed.Add(1)
			a.log.Warn("work not reported", zap.String("agent_id", a.id), zap.String("assignment_id", w.GetId()), zap.Error(err))
		}
	})
}

// certificateOf is the certificate that a job has work for; a verification belongs to none.
func certificateOf(w *agentv1.Assignment) string {
	if csr := w.GetCreateCsr(); csr != nil {
		return csr.GetCertificateId()
	}
	return w.GetDeploy().GetCertificateId()
}

// do makes keys and CSRs as the real agent does, and takes every deployment for done and every certificate for served.
func (a *agent) do(ctx context.Context, w *agentv1.Assignment) error {
	r := &agentv1.ReportAssignmentRequest{AssignmentId: w.GetId(), LeaseId: w.GetLeaseId()}
	switch work := w.GetWork().(type) {
	case *agentv1.Assignment_CreateCsr:
		csr, err := newCSR(work.CreateCsr.GetNames())
		if err != nil {
			return err
		}
		r.Report = &agentv1.ReportAssignmentRequest_Csr{Csr: csr}
	case *agentv1.Assignment_Deploy:
		r.Report = served(work.Deploy.GetFingerprintSha256())
	case *agentv1.Assignment_Verify:
		r.Report = served(work.Verify.GetFingerprintSha256())
	default:
		return fmt.Errorf("work of a kind that is not known: %T", work)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := a.client.ReportAssignment(ctx, r); err != nil {
		return err
	}
	a.reported.Add(1)
	return nil
}

func served(fingerprint string) *agentv1.ReportAssignmentRequest_Deploy {
	return &agentv1.ReportAssignmentRequest_Deploy{Deploy: &agentv1.DeployResult{ServedFingerprintSha256: fingerprint, VerifyTime: timestamppb.Now()}}
}

// newCSR makes a new P-256 key and has it sign a request for the names (PKCS #10, RFC 2986).
func newCSR(n *typev1.Names) (*agentv1.CsrResult, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: n.GetCommonName()}, DNSNames: n.GetDnsNames(), EmailAddresses: n.GetEmailAddresses()}
	for _, s := range n.GetIpAddresses() {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(s))
	}
	for _, s := range n.GetUris() {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("read URI: %w", err)
		}
		t.URIs = append(t.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("make CSR: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(public)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return &agentv1.CsrResult{CsrPem: string(text), PublicKeySha256: hex.EncodeToString(sum[:])}, nil
}

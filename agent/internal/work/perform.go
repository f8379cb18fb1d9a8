package work

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/agent/internal/keystore"
	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/errs"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// oldKeys is how long keys of versions that are no longer in service are kept.
const oldKeys = 30 * 24 * time.Hour

// maxMessage bounds what is told about a failure, bytes.
const maxMessage = 4096

type failure struct {
	reason, message, step string
	rolledBack, permanent bool
	served                string
}

func fail(r *agentv1.ReportAssignmentRequest, f failure) {
	if len(f.message) > maxMessage {
		f.message = f.message[:maxMessage] + " …"
	}
	f.message = strings.ToValidUTF8(f.message, "?") // commands print what they like; a message must be UTF-8
	r.Report = &agentv1.ReportAssignmentRequest_Failure{Failure: &agentv1.Failure{
		Problem: &typev1.Problem{Reason: f.reason, Message: f.message}, Step: f.step, RolledBack: f.rolledBack, Permanent: f.permanent,
		ServedFingerprintSha256: f.served,
	}}
}

func (w *Worker) createCSR(assignmentID string, c *agentv1.CreateCsr, r *agentv1.ReportAssignmentRequest, log *zap.Logger) {
	algorithm := keystore.Algorithm("")
	if c.GetKeyAlgorithm() != typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		algorithm = keystore.Algorithm(c.GetKeyAlgorithm().String())
	}
	key, err := w.Keys.Make(c.GetCertificateId(), assignmentID, algorithm)
	if err != nil {
		log.Error("key not made", zap.Error(err))
		fail(r, failure{reason: "KEY_NOT_MADE", message: err.Error(), permanent: errors.Is(err, keystore.ErrRefused)})
		return
	}
	template, err := csrTemplate(c.GetNames())
	if err != nil {
		fail(r, failure{reason: "NAMES_INVALID", message: err.Error(), permanent: true})
		return
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		fail(r, failure{reason: "CSR_NOT_MADE", message: err.Error(), permanent: true})
		return
	}
	sum, err := keystore.PublicKeySHA256(key.Public())
	if err != nil {
		fail(r, failure{reason: "CSR_NOT_MADE", message: err.Error(), permanent: true})
		return
	}
	log.Info("key and certificate signing request made", zap.String("certificate_id", c.GetCertificateId()))
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	r.Report = &agentv1.ReportAssignmentRequest_Csr{Csr: &agentv1.CsrResult{CsrPem: string(block), PublicKeySha256: sum}}
}

// csrTemplate puts each name where its type belongs (RFC 5280, section 4.2.1.6).
func csrTemplate(n *typev1.Names) (*x509.CertificateRequest, error) {
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: n.GetCommonName()}, DNSNames: n.GetDnsNames(), EmailAddresses: n.GetEmailAddresses()}
	for _, s := range n.GetIpAddresses() {
		ip := net.ParseIP(s)
		if ip == nil {
			return nil, fmt.Errorf("%q is no IP address", s)
		}
		t.IPAddresses = append(t.IPAddresses, ip)
	}
	for _, s := range n.GetUris() {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no URI", s)
		}
		t.URIs = append(t.URIs, u)
	}
	return t, nil
}

func (w *Worker) deploy(ctx context.Context, d *agentv1.Deploy, r *agentv1.ReportAssignmentRequest, log *zap.Logger) {
	log = log.With(zap.String("certificate_id", d.GetCertificateId()), zap.Int32("version", d.GetVersion()), zap.String("target_id", d.GetTarget().GetId()))
	key, err := w.Keys.Find(d.GetCertificateId(), d.GetPublicKeySha256())
	if err != nil {
		log.Error("no key for the certificate", zap.Error(err))
		fail(r, keyFailure(err))
		return
	}
	started := time.Now()
	result, err := w.Engine.Deploy(ctx, target.Request{
		TargetID: d.GetTarget().GetId(), Type: d.GetTarget().GetType(), Config: json.RawMessage(d.GetTarget().GetConfig()),
		Endpoint: endpoint(d.GetTarget().GetEndpoint()),
		Material: target.Material{CertificatePEM: []byte(d.GetCertificatePem()), ChainPEM: []byte(d.GetChainPem()), Key: key},
		Version:  fmt.Sprintf("%s/%d", d.GetCertificateId(), d.GetVersion()),
		Force:    d.GetForce(),
	})
	for _, warning := range result.Warnings {
		log.Warn("deployment warning", zap.String("warning", warning))
	}
	if ctx.Err() != nil {
		return // the agent ends; the result says no more than that
	}
	if err != nil {
		log.Error("deployment failed", zap.Error(err), zap.String("step", string(result.Step)), zap.String("outcome", string(result.Outcome)), zap.String("output", result.Output))
		fail(r, deployFailure(err, result))
		return
	}
	log.Info("certificate is served", zap.String("outcome", string(result.Outcome)), zap.Duration("took", time.Since(started)),
		zap.String("fingerprint_sha256", result.Served.FingerprintSHA256))
	r.Report = &agentv1.ReportAssignmentRequest_Deploy{Deploy: seen(result.Served, result.Outcome == target.OutcomeUnchanged)}
	if err := w.Keys.Prune(d.GetCertificateId(), d.GetPublicKeySha256(), oldKeys); err != nil {
		log.Warn("old keys not removed", zap.Error(err))
	}
}

func keyFailure(err error) failure {
	f := failure{reason: "KEY_NOT_FOUND", step: string(target.StepPreflight), message: err.Error()}
	switch {
	case errors.Is(err, keystore.ErrNotFound):
		f.message = "this host does not have the private key of the version; renew the certificate, which makes a new one: " + f.message
		f.permanent = true
	case errors.Is(err, keystore.ErrRefused):
		f.permanent = true
	}
	return f
}

func deployFailure(err error, result target.Result) failure {
	message := err.Error()
	if result.Output != "" {
		message += ": " + result.Output
	}
	kind := errs.KindOf(err)
	return failure{
		reason: errs.ReasonOf(err), message: message, step: string(result.Step), rolledBack: result.RolledBack,
		permanent: kind == errs.Invalid || kind == errs.PermissionDenied, served: result.Served.FingerprintSHA256,
	}
}

func seen(s target.Served, unchanged bool) *agentv1.DeployResult {
	address := s.Address
	if s.VerifiedBy == target.ByFiles {
		address = ""
	}
	return &agentv1.DeployResult{ServedFingerprintSha256: s.FingerprintSHA256, VerifiedAddress: address, Unchanged: unchanged, VerifyTime: timestamppb.Now()}
}

func (w *Worker) verify(ctx context.Context, v *agentv1.Verify, r *agentv1.ReportAssignmentRequest, log *zap.Logger) {
	served, err := w.Engine.Verify(ctx, target.VerifyRequest{Type: v.GetTarget().GetType(), Config: json.RawMessage(v.GetTarget().GetConfig()),
		Endpoint: endpoint(v.GetTarget().GetEndpoint()), Names: v.GetDnsNames()})
	if err != nil {
		log.Warn("endpoint could not be verified", zap.Error(err), zap.String("target_id", v.GetTarget().GetId()))
		fail(r, failure{reason: errs.ReasonOf(err), message: err.Error(), step: string(target.StepVerify)})
		return
	}
	r.Report = &agentv1.ReportAssignmentRequest_Deploy{Deploy: seen(served, true)}
}

func endpoint(e *typev1.Endpoint) target.Endpoint {
	starttls := ""
	if e.GetStarttls() != typev1.Endpoint_START_TLS_UNSPECIFIED {
		starttls = strings.ToLower(e.GetStarttls().String())
	}
	return target.Endpoint{Address: e.GetAddress(), ServerName: e.GetServerName(), StartTLS: starttls}
}

// worthAnotherTry tells whether a report may get through later.
func worthAnotherTry(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.DeadlineExceeded, errs.ResourceExhausted, errs.Internal, errs.Unauthenticated:
		return true
	default:
		return false
	}
}

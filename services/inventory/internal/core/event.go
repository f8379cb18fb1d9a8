package core

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// Apply applies events of another service, in their order.
func (c *Core) Apply(ctx context.Context, t *store.Tx, events []*eventv1.Event) error {
	for len(events) > 0 {
		n := countAlike(events)
		var err error
		switch events[0].GetType() {
		case eventIssued:
			err = c.certificatesIssued(ctx, t, events[:n])
		case eventRevoked:
			err = revocationsDone(ctx, t, events[:n])
		default:
			n = 1
			t.CausedBy(events[0].GetRequestId())
			err = c.applyOne(rpcctx.WithRequestID(ctx, events[0].GetRequestId()), t, events[0])
		}
		if err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// countAlike counts the events at the front that are of the type of the first.
func countAlike(events []*eventv1.Event) int {
	n := slices.IndexFunc(events, func(e *eventv1.Event) bool { return e.GetType() != events[0].GetType() })
	if n < 0 {
		return len(events)
	}
	return n
}

// revocationsDone notes what CAs know to be revoked.
func revocationsDone(ctx context.Context, t *store.Tx, events []*eventv1.Event) error {
	finished := make([]store.Finished, 0, len(events))
	for _, e := range events {
		m := &issuancev1.RevocationDone{}
		if err := payload(e, m); err != nil {
			return err
		}
		finished = append(finished, store.Finished{CertificateID: m.GetCertificateId(), SerialNumbers: m.GetSerialNumbers()})
	}
	return t.FinishRevocations(ctx, finished...)
}

func (c *Core) applyOne(ctx context.Context, t *store.Tx, e *eventv1.Event) error {
	switch e.GetType() {
	case "revocation.changed":
		m := &issuancev1.RevocationChanged{}
		if err := payload(e, m); err != nil {
			return err
		}
		return revocationChanged(ctx, t, m)
	default:
		return outbox.Reject(fmt.Errorf("inventory knows no event %q", e.GetType()))
	}
}

func payload(e *eventv1.Event, into proto.Message) error {
	if err := e.GetPayload().UnmarshalTo(into); err != nil {
		return outbox.Reject(fmt.Errorf("decode payload of %s: %w", e.GetType(), err))
	}
	return nil
}

// revocationChanged notes why the CA has not revoked versions yet, or at all.
func revocationChanged(ctx context.Context, t *store.Tx, m *issuancev1.RevocationChanged) error {
	state := "FAILED"
	if m.GetState() == issuancev1.RevocationChanged_AWAITING_APPROVAL {
		state = "AWAITING_APPROVAL"
	}
	_, err := t.HoldRevocations(ctx, m.GetCertificateId(), m.GetSerialNumbers(), state, m.GetMessage())
	return err
}

// storedTooLate handles a version of a certificate that is revoked or archived: it is kept for the record and never deployed.
func (c *Core) storedTooLate(ctx context.Context, t *store.Tx, row store.Certificate, v store.Version) error {
	if row.RevocationTime == nil {
		return nil
	}
	reason := typev1.RevocationReason(typev1.RevocationReason_value[row.RevocationReason])
	tell(t, toIssuance, "version.revoked", resourceCertificate, row.ID, c.revoked(ctx, row, []store.Version{v}, reason))
	audit(ctx, t, "version.revoked", resourceCertificate, row.ID, map[string]any{
		"version": v.Version, "serial_number": v.SerialNumber, "reason": row.RevocationReason,
	})
	return nil
}

// parseVersion reads the leaf. Issuance has checked it against the order; here it only has to be readable.
func parseVersion(m *issuancev1.CertificateIssued) (store.Version, error) {
	block, _ := pem.Decode([]byte(m.GetCertificatePem()))
	if block == nil || block.Type != "CERTIFICATE" {
		return store.Version{}, errors.New("the issued certificate is not PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return store.Version{}, fmt.Errorf("parse issued certificate: %w", err)
	}
	fingerprint, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return store.Version{
		CertificateID: m.GetCertificateId(), OrderID: m.GetOrderId(), AgentID: m.GetAgentId(),
		SerialNumber: leaf.SerialNumber.Text(16), FingerprintSHA256: hex.EncodeToString(fingerprint[:]), PublicKeySHA256: hex.EncodeToString(key[:]),
		IssuerDN: leaf.Issuer.String(), SubjectDN: leaf.Subject.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		KeyAlgorithm: view.KeyAlgorithmName(keyAlgorithm(leaf)), CertificatePEM: m.GetCertificatePem(), ChainPEM: m.GetChainPem(),
	}, nil
}

func keyAlgorithm(leaf *x509.Certificate) typev1.KeyAlgorithm {
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return typev1.KeyAlgorithm_ECDSA_P256
		case elliptic.P384():
			return typev1.KeyAlgorithm_ECDSA_P384
		}
	case *rsa.PublicKey:
		return map[int]typev1.KeyAlgorithm{
			2048: typev1.KeyAlgorithm_RSA_2048, 3072: typev1.KeyAlgorithm_RSA_3072, 4096: typev1.KeyAlgorithm_RSA_4096,
		}[key.N.BitLen()]
	case ed25519.PublicKey:
		return typev1.KeyAlgorithm_ED25519
	}
	return typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED
}

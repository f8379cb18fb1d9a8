package api

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/outbox"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
)

// NewSink makes the receiver of events. Revocations come as events too, so that a CA is told of them even when the call
// that inventory makes at once has failed.
func NewSink(c *core.Core, log *zap.Logger) (*outbox.Sink, error) {
	return outbox.NewSink(outbox.SinkDeps{
		DB: c.DB(), Logger: log, After: c.KickCRLs,
		Apply: func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error { return apply(ctx, tx, c, e) },
	})
}

func apply(ctx context.Context, tx pgx.Tx, c *core.Core, e *eventv1.Event) error {
	switch e.GetType() {
	case "certificate.revoked", "version.revoked":
	default:
		return outbox.Reject(fmt.Errorf("issuance does not know events of type %q", e.GetType()))
	}
	changed := &inventoryv1.CertificateChanged{}
	if err := e.GetPayload().UnmarshalTo(changed); err != nil {
		return outbox.Reject(fmt.Errorf("read payload: %w", err))
	}
	r := core.RevokeRequest{
		CertificateID: changed.GetCertificate().GetId(), Reason: int16(changed.GetRevocationReason()),
		RevocationTime: timeOf(changed.GetCertificate().GetRevocationTime()),
	}
	if r.CertificateID == "" {
		return outbox.Reject(fmt.Errorf("event %s names no certificate", e.GetId()))
	}
	for _, v := range changed.GetRevokedVersions() {
		r.SerialNumbers = append(r.SerialNumbers, v.GetSerialNumber())
	}
	if len(r.SerialNumbers) == 0 {
		if e.GetType() == "version.revoked" {
			return nil // nothing was issued
		}
	}
	if r.RevocationTime.IsZero() {
		r.RevocationTime = timeOf(e.GetTime())
	}
	return c.StoreRevocations(ctx, tx, r)
}

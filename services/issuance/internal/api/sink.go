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
	together := func(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) error { return apply(ctx, tx, c, events) }
	return outbox.NewSink(outbox.SinkDeps{
		DB: c.DB(), Logger: log, After: c.KickCRLs, ApplyBatch: together,
		Apply: func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
			return together(ctx, tx, []*eventv1.Event{e})
		},
	})
}

func apply(ctx context.Context, tx pgx.Tx, c *core.Core, events []*eventv1.Event) error {
	requests := make([]core.RevokeRequest, 0, len(events))
	for _, e := range events {
		r, wanted, err := revocation(e)
		if err != nil {
			return err
		}
		if wanted {
			requests = append(requests, r)
		}
	}
	_, err := c.StoreRevocations(ctx, tx, requests...)
	return err
}

// revocation reads what an event wants revoked; wanted is false when that is nothing.
func revocation(e *eventv1.Event) (r core.RevokeRequest, wanted bool, err error) {
	switch e.GetType() {
	case "certificate.revoked", "version.revoked":
	default:
		return r, false, outbox.Reject(fmt.Errorf("issuance does not know events of type %q", e.GetType()))
	}
	changed := &inventoryv1.CertificateChanged{}
	if err := e.GetPayload().UnmarshalTo(changed); err != nil {
		return r, false, outbox.Reject(fmt.Errorf("read payload: %w", err))
	}
	r = core.RevokeRequest{
		CertificateID: changed.GetCertificate().GetId(), Reason: int16(changed.GetRevocationReason()),
		RevocationTime: timeOf(changed.GetCertificate().GetRevocationTime()), RequestID: e.GetRequestId(),
	}
	if r.CertificateID == "" {
		return r, false, outbox.Reject(fmt.Errorf("event %s names no certificate", e.GetId()))
	}
	for _, v := range changed.GetRevokedVersions() {
		r.SerialNumbers = append(r.SerialNumbers, v.GetSerialNumber())
	}
	if len(r.SerialNumbers) == 0 && e.GetType() == "version.revoked" {
		return r, false, nil // nothing was issued
	}
	if r.RevocationTime.IsZero() {
		r.RevocationTime = timeOf(e.GetTime())
	}
	return r, true, nil
}

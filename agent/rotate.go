package agent

import (
	"context"
	"fmt"
	"math"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// rotateLoop takes a new credential when it is time or the server asks. It never asks for another one while it is open which
// of two is valid: the older of them might be neither.
func (a *agent) rotateLoop(ctx context.Context) error {
	t, err := tick.New(a.cfg.Rotation, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer t.Stop()
	for {
		if !a.settle(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-a.rotate.C():
		}
		if err := a.rotateOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("credential not rotated; the old one stays valid", zap.Error(err))
		}
	}
}

func (a *agent) rotateOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := a.client.RotateCredential(ctx, &agentv1.RotateCredentialRequest{})
	if err != nil {
		return fmt.Errorf("rotate credential: %w", err)
	}
	return a.id.Offer(secretbox.NewSecret(answer.GetCredential()))
}

// settle uses an offered credential until the server has said whether it is valid: just after the rotation, or after a crash
// that came in between. It answers false when ctx ended before.
func (a *agent) settle(ctx context.Context) bool {
	var pause control.Backoff
	for a.id.Offered() {
		err := a.settleOnce(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		wait := pause.Next()
		a.log.Warn("new credential not confirmed yet; both are kept", zap.Error(err), zap.Duration("retry_in", wait))
		if tick.Wait(ctx, wait) != nil {
			return false
		}
	}
	return true
}

func (a *agent) settleOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	credential := a.id.Credential()
	// A question that any valid credential may ask and that changes nothing.
	_, err := a.client.ListAssignments(control.With(ctx, credential), &agentv1.ListAssignmentsRequest{AfterRevision: math.MaxInt64, MaxAssignments: 1}, grpc.WaitForReady(true))
	switch {
	case err == nil:
		if err := a.id.Accept(credential); err != nil {
			return err
		}
		a.log.Info("credential rotated")
		return nil
	case control.Unauthenticated(err):
		a.log.Warn("the server refuses the new credential; the old one is used again", zap.Error(err))
		_, err := a.id.Refuse(credential)
		return err
	default:
		return fmt.Errorf("try the new credential: %w", err)
	}
}

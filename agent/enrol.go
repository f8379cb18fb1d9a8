package agent

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// enrol trades the join token for a credential. It waits for a server that is away, until ctx ends.
func (a *agent) enrol(ctx context.Context) error {
	if a.cfg.JoinToken.IsZero() {
		return errors.New("this agent is not enrolled and has no join token: make one with 'certctl agents join-token' and start it with --join-token")
	}
	var pause control.Backoff
	for {
		answer, err := a.enrolOnce(ctx)
		if err == nil {
			return a.enrolled(answer)
		}
		if ctx.Err() == nil && !errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded, errs.ResourceExhausted, errs.Internal) {
			return err
		}
		wait := pause.Next()
		a.log.Warn("enrolment not possible yet", zap.Error(err), zap.Duration("retry_in", wait))
		if !control.Wait(ctx, wait) {
			return nil
		}
	}
}

func (a *agent) enrolOnce(ctx context.Context) (*agentv1.EnrollResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// What is trusted is the token: a credential that is worth nothing any more is not sent along.
	answer, err := a.client.Enroll(control.With(ctx, secretbox.Secret{}), &agentv1.EnrollRequest{
		JoinToken: a.cfg.JoinToken.Reveal(), Name: a.cfg.Name, InstanceId: a.id.InstanceID(), Host: a.host, Labels: a.cfg.Labels,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol as %q: %w", a.cfg.Name, err)
	}
	return answer, nil
}

func (a *agent) enrolled(answer *agentv1.EnrollResponse) error {
	if err := a.id.Enrol(answer.GetAgentId(), a.cfg.Name, secretbox.NewSecret(answer.GetCredential())); err != nil {
		return fmt.Errorf("store the enrolment: %w", err)
	}
	a.log.Info("enrolled", zap.String("agent_id", answer.GetAgentId()), zap.String("name", a.cfg.Name))
	return nil
}

// refused is called when the server does not take a credential. Only when there is no other one is the join token tried: the
// server decides whether it lets this name in again. The answer is whether to connect again at once.
func (a *agent) refused(ctx context.Context, credential secretbox.Secret, cause error) (bool, error) {
	another, err := a.id.Refuse(credential)
	if err != nil || another {
		return another, err
	}
	if a.cfg.JoinToken.IsZero() {
		a.log.Error("the server refuses this agent's credential; enrol it again: 'certctl agents allow-reenrollment', then start it with --join-token", zap.Error(cause))
		return false, nil
	}
	a.log.Warn("the server refuses this agent's credential; enrolling again", zap.Error(cause))
	answer, err := a.enrolOnce(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.log.Error("not enrolled again", zap.Error(err))
		}
		return false, nil
	}
	// Not at once: a server that gives credentials and then refuses them is not to be pressed.
	return false, a.enrolled(answer)
}

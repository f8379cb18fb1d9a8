package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.uber.org/zap"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// enrol trades the join token for a credential. It waits for a server that is away, until ctx ends; for one that refuses only
// if the settings say so: somebody at a terminal wants to know at once.
func (a *agent) enrol(ctx context.Context) error {
	var pause control.Backoff
	for {
		answer, err := a.enrolOnce(ctx)
		if err == nil {
			return a.enrolled(answer)
		}
		if ctx.Err() == nil && !a.mayPass(err) {
			return err
		}
		a.condition.set(false, false, err)
		wait := pause.Next()
		a.log.Warn("enrolment not possible yet", zap.Error(err), zap.Duration("retry_in", wait))
		if tick.Wait(ctx, wait) != nil {
			return nil //nolint:nilerr // told to end
		}
	}
}

// mayPass tells whether what is in the way of an enrolment can be cured while the agent waits.
func (a *agent) mayPass(err error) bool {
	switch {
	case errors.Is(err, errNoToken):
		return a.cfg.WaitToEnrol && a.cfg.JoinTokenFile != "" // it may come into the file
	case errs.IsKind(err, errs.Unauthenticated, errs.PermissionDenied, errs.AlreadyExists):
		return a.cfg.WaitToEnrol && !control.Retired(err)
	default:
		return errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded, errs.ResourceExhausted, errs.Internal)
	}
}

// errNoToken says that there is nothing to enrol with.
var errNoToken = errors.New("there is no join token for this agent: make one with 'certctl agents join-token' and start it with --join-token or --join-token-file")

// joinToken answers the token as it is now: one in a file may have been replaced, or come only later. A standing token that is being
// rotated is a list; the first is the one to use.
func (a *agent) joinToken() (secretbox.Secret, error) {
	token, from := a.cfg.JoinToken, "--join-token"
	if a.cfg.JoinTokenFile != "" {
		text, err := readToken(a.cfg.JoinTokenFile)
		if err != nil {
			return secretbox.Secret{}, fmt.Errorf("%w: read join token: %w", errNoToken, err)
		}
		token, from = secretbox.NewSecret(text), a.cfg.JoinTokenFile
		if token.IsZero() {
			return token, fmt.Errorf("%w: %s is empty", errNoToken, from)
		}
	}
	if token.IsZero() {
		return token, errNoToken
	}
	list, err := token.List(1)
	if err != nil {
		return secretbox.Secret{}, fmt.Errorf("%w: %s: %w", errNoToken, from, err)
	}
	return list[0], nil
}

// maxToken bounds the file of a join token.
const maxToken = 64 << 10

// readToken reads a regular file only: a pipe might never end.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file (%s)", path, info.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxToken {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxToken)
	}
	return strings.TrimSpace(string(b)), nil
}

func (a *agent) enrolOnce(ctx context.Context) (*agentv1.EnrollResponse, error) {
	token, err := a.joinToken()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// What is trusted is the token: a credential that is worth nothing any more is not sent along.
	answer, err := a.client.Enroll(control.With(ctx, secretbox.Secret{}), &agentv1.EnrollRequest{
		JoinToken: token.Reveal(), Name: a.cfg.Name, InstanceId: a.id.InstanceID(), Host: a.host, Labels: a.cfg.Labels,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol as %q: %w%s", a.cfg.Name, err, wayOut(err))
	}
	return answer, nil
}

// wayOut is what an operator can do about a refusal, as the end of a sentence.
func wayOut(err error) string {
	switch errs.ReasonOf(err) {
	case "AGENT_NAME_TAKEN":
		return ". 'certctl agents list' has its id. To let this host take its place: 'certctl agents allow-reenrollment ID', or a token from " +
			"'certctl agents join-token --allow-reenrollment'. To give the old one up for good: 'certctl agents retire ID'. To have both: another --name"
	case "JOIN_TOKEN_NOT_VALID":
		return ". Make another with 'certctl agents join-token'; a standing one must be the same as the server's CERTCTL_AGENT_JOIN_TOKEN"
	default:
		return ""
	}
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
	a.log.Warn("the server refuses this agent's credential; enrolling again", zap.Error(cause))
	answer, err := a.enrolOnce(ctx)
	if err != nil {
		if errors.Is(err, errNoToken) {
			err = fmt.Errorf("%w, after 'certctl agents allow-reenrollment %s'", err, a.id.AgentID())
		}
		if ctx.Err() == nil {
			a.log.Error("not enrolled again", zap.Error(err))
			a.condition.set(true, false, fmt.Errorf("%w; not enrolled again: %w", cause, err))
		}
		return false, nil
	}
	// Not at once: a server that gives credentials and then refuses them is not to be pressed.
	return false, a.enrolled(answer)
}

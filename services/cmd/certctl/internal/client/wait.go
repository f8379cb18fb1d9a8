package client

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/tick"
)

// waiting are --wait and --timeout.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func waitFlags(c *cobra.Command) *waiting {
	w := timeoutFlag(c, defaultTimeout)
	c.Flags().BoolVarP(&w.wait, "wait", "w", false, "wait until it has worked or failed, with progress on standard error")
	return w
}

func timeoutFlag(c *cobra.Command, d time.Duration) *waiting {
	w := &waiting{}
	c.Flags().DurationVar(&w.timeout, "timeout", d, "how long to wait")
	complete(c, "timeout", cobra.NoFileCompletions)
	return w
}

// errUnfinished is the end of waiting without a result. The caller's Failure says more.
var errUnfinished = errors.New("not finished in time")

// follow runs what waits under the time limit.
func (w *waiting) follow(ctx context.Context, s *session, f func(context.Context) (proto.Message, error)) (proto.Message, error) {
	limited, cancel := context.WithTimeoutCause(ctx, w.timeout, errUnfinished)
	defer cancel()
	m, err := f(limited)
	if err == nil || !errors.Is(context.Cause(limited), errUnfinished) || ctx.Err() != nil {
		return m, err
	}
	if f := (*Failure)(nil); errors.As(err, &f) {
		return m, err
	}
	return nil, s.unfinished(w.timeout, err)
}

// unfinished says what was waited for, as far as it is known.
func (s *session) unfinished(d time.Duration, err error) error {
	f := &Failure{Message: "not finished after " + d.String(), Code: exitTimeout, cause: err}
	if s.state != "" {
		f.Message += "; " + s.state
	}
	f.Hint = s.resume
	return f
}

// pending notes what is waited for, for the message when the time is over, and how to go on waiting. A new state is told.
func (s *session) pending(state, resume string) {
	if state != s.state && !s.quiet {
		s.note("%s", state)
	}
	s.state, s.resume = state, resume
}

// until asks again and again, with growing pauses, until check says that it is done. A server that restarts meanwhile, or asks
// for patience, is waited for too.
func (s *session) until(ctx context.Context, check func(context.Context) (done bool, err error)) error {
	pause, away := s.cfg.Poll, false
	for {
		done, err := check(ctx)
		switch {
		case err == nil && done:
			return nil
		case err == nil:
			away = false
		case ctx.Err() != nil:
			return ctx.Err()
		case !s.spoke() || !errs.IsKind(err, errs.Unavailable, errs.ResourceExhausted, errs.DeadlineExceeded):
			return err
		case !away:
			away = true
			s.note("the server does not answer; trying again")
		}
		if err := tick.Wait(ctx, patience(pause, err)); err != nil {
			return err
		}
		pause = min(pause*2, 8*s.cfg.Poll)
	}
}

// patience is the pause, or the longer one that the server asked for.
func patience(pause time.Duration, err error) time.Duration {
	if err == nil {
		return pause
	}
	if d, ok := errs.From(err).RetryDelay(); ok {
		return max(pause, d)
	}
	return pause
}

package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

const (
	// smokeTimeout bounds a run. Each step of what follows in any case has as long, and cleanTimeout at least.
	smokeTimeout = 2 * time.Minute
	cleanTimeout = 30 * time.Second
)

func (a *app) smoke() *cobra.Command {
	c := &cobra.Command{
		Use:   "smoke",
		Short: "Prove that an installation works: have a certificate issued, look at it, revoke it",
		Long: "Prove that an installation works, by what any client may do: ask whether it is ready, create a certificate with a name of its\n" +
			"own, have it issued for a key that exists in this command only, look at it, at the lists and at the audit record, revoke it\n" +
			"and archive it. It prints a line for each step, and ends with the first error. It needs the key of an admin, and leaves an\n" +
			"archived certificate and what is on the record.",
		Example: "  certctl smoke\n  certctl smoke --issuer digicert --domain smoke.example.com --timeout 15m",
	}
	var k smoke
	c.Flags().StringVar(&k.issuer, "issuer", "iss-local", "issuer to have the certificate from")
	c.Flags().StringVar(&k.profile, "profile", "", "profile of the certificate (default prof-default)")
	c.Flags().StringVar(&k.domain, "domain", "smoke.invalid", "domain of its name")
	complete(c, "issuer", a.flagIDs(listIssuers(), "name"))
	complete(c, "profile", a.flagIDs(listProfiles(), "name"))
	complete(c, "domain", cobra.NoFileCompletions)
	w := timeoutFlag(c, smokeTimeout)
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		if s.format != show.Table {
			return usage("smoke prints lines for people; leave out -o")
		}
		s.quiet = true
		k := k
		k.session = s
		return k.run(ctx, w.timeout)
	})
}

// step is one thing that must work.
type step struct {
	name string
	// do answers what it has seen.
	do func(ctx context.Context) (string, error)
	// look says where to look when it fails.
	look string
}

// run does the steps until one fails, and cleans up in any case.
func (k *smoke) run(ctx context.Context, timeout time.Duration) error {
	k.named()
	err := k.each(ctx, timeout, k.steps())
	if !k.asked {
		return err
	}
	left := k.clean(ctx, timeout)
	if err != nil && left != nil {
		k.note("not cleaned up: %v", left)
		return err
	}
	return errors.Join(err, left)
}

// clean does all of its steps, whatever becomes of those before: a CA that revokes slowly keeps nothing from being archived.
// After an interrupt it does not wait for long.
func (k *smoke) clean(ctx context.Context, timeout time.Duration) error {
	var problems []error
	for _, s := range k.cleaning(ctx) {
		ctx, limit := ctx, max(cleanTimeout, timeout)
		if ctx.Err() != nil {
			ctx, limit = context.WithoutCancel(ctx), cleanTimeout
		}
		problems = append(problems, k.each(ctx, limit, []step{s}))
	}
	return errors.Join(problems...)
}

func (k *smoke) each(ctx context.Context, timeout time.Duration, steps []step) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errUnfinished)
	defer cancel()
	for _, step := range steps {
		begin := time.Now()
		k.state, k.resume = "", step.look
		seen, err := step.do(ctx)
		if err == nil {
			if err := k.line("ok", step.name, seen, time.Since(begin)); err != nil {
				return err
			}
			continue
		}
		if context.Cause(ctx) == errUnfinished { //nolint:errorlint // it is set as it is, by us
			err = k.unfinished(timeout, err)
		}
		_ = k.line("FAILED", step.name, "", time.Since(begin)) // the error says more
		return k.failed(step, err)
	}
	return nil
}

// failed names the step, and says where to look if the error itself does not.
func (k *smoke) failed(step step, err error) error {
	f := (*Failure)(nil)
	if !errors.As(k.explain(err), &f) {
		return err
	}
	named := *f
	named.Message = "step " + step.name + " failed: " + f.Message
	if named.Hint == "" || f.Code == exitTimeout {
		named.Hint = step.look
	}
	return &named
}

// line is what a step says of itself.
func (k *smoke) line(verdict, name, seen string, took time.Duration) error {
	text := fmt.Sprintf("%-6s  %-8s  %7s", verdict, name, fmt.Sprintf("%.3fs", took.Seconds()))
	if seen != "" {
		text += "  " + show.Clean(seen)
	}
	_, err := fmt.Fprintln(k.out(), text)
	return err
}

// Package client is the command-line client of certctl: the commands that talk to a gateway over gRPC, with an API key
// and a pinned CA, and show what it answers.
//
// The commands write results to standard output and everything else (notes, progress, questions) to standard error, both as
// cobra has them. They print no errors: main prints what Execute returns, which may have several lines, and exits with
// ExitCode.
//
//	0  done
//	1  it did not work
//	2  the command line or a setting is not right
//	3  what was named does not exist
//	4  --timeout passed before what --wait and watch wait for
package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// Config is what the commands need from the program.
type Config struct {
	// Environ is the environment, as os.Environ gives it.
	Environ []string
	// Also are the settings structs of the other programs that may share the environment; see config.Options.
	Also []any
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Poll is the first pause of --wait and watch, which grows to eight times of it; 0: 250 ms.
	Poll time.Duration
	// Interactive tells whether somebody can answer questions on this input; nil: whether it is a terminal.
	Interactive func(io.Reader) bool
}

// app is what all commands share.
type app struct{ cfg Config }

// Commands makes the client's commands, for a root command.
func Commands(cfg Config) []*cobra.Command {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 250 * time.Millisecond
	}
	if cfg.Interactive == nil {
		cfg.Interactive = isTerminal
	}
	a := &app{cfg: cfg}
	commands := []*cobra.Command{
		a.certificates(), a.issuers(), a.profiles(), a.policies(), a.targets(), a.deployments(), a.agents(), a.jobs(),
		a.orders(), a.audit(), a.stats(), a.smoke(), a.bench(), a.version(),
	}
	for _, c := range commands {
		a.connectionFlags(c)
	}
	return commands
}

// connectionFlags gives a command and those below it what all have.
func (a *app) connectionFlags(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.String(flagURL, "", "URL of the gateway (CERTCTL_URL)")
	flags.String(flagKeyFile, "", "file with the API key (CERTCTL_API_KEY_FILE, or the key in CERTCTL_API_KEY)")
	flags.String(flagCA, "", "file with the CA that the gateway's certificate is from, PEM (CERTCTL_CA)")
	flags.String(flagDataDir, "", "data directory of a local server, which has all three (CERTCTL_DATA_DIR; default ./.certctl)")
	flags.StringP(flagOutput, "o", string(show.Table), "table, json, yaml or name")
	complete(c, flagOutput, cobra.FixedCompletions(show.Formats(), cobra.ShellCompDirectiveNoFileComp))
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err.Error()) })
}

// The flags of all commands.
const (
	flagURL     = "url"
	flagKeyFile = "api-key-file"
	flagCA      = "ca"
	flagDataDir = "data-dir"
	flagOutput  = "output"
)

// complete sets the completion of a flag that the command has.
func complete(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// group makes a command that only has others below it.
func group(use, short string, aliases []string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Aliases: aliases, SilenceErrors: true, SilenceUsage: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownCommand(c, args[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.AddCommand(below...)
	return c
}

// action is the work of a command, once there is a connection.
type action func(ctx context.Context, s *session, args []string) error

// leaf makes a command that does something.
func (a *app) leaf(c *cobra.Command, args cobra.PositionalArgs, act action) *cobra.Command {
	c.SilenceErrors, c.SilenceUsage = true, true
	c.Args = func(c *cobra.Command, given []string) error {
		// Cobra asks for required flags after this, with an error that nobody could tell from another.
		err := errors.Join(args(c, given), c.ValidateRequiredFlags(), c.ValidateFlagGroups())
		if err != nil {
			return usage(err.Error() + "\nusage: " + c.UseLine())
		}
		return nil
	}
	if c.ValidArgsFunction == nil {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	c.RunE = func(c *cobra.Command, given []string) error {
		s, err := a.open(c)
		if err != nil {
			return err
		}
		defer s.close()
		return s.explain(act(c.Context(), s, given))
	}
	return c
}

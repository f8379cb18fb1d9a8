// Command certctl-agent is certctl on a host that serves certificates.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	switch {
	case errors.Is(err, agent.ErrRetired):
		// Retirement is a proper end: an init system must not start the agent again.
		fmt.Fprintln(os.Stderr, "certctl-agent:", err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "certctl-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "certctl-agent",
		Short:         "certctl on a host that serves certificates",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
	}
	root.AddCommand(runCommand(os.LookupEnv, run))
	return root
}

// options are the flags; each has an environment variable, so that a secret need not stand in a process list.
type options struct {
	server, serverCA, joinToken, joinTokenFile, dataDir, name string
	labels                                                    map[string]string
	allow                                                     []string
	rotation                                                  time.Duration
	logFormat                                                 string
}

// runCommand fills the options from flags and environment, and starts the agent with them.
func runCommand(lookup func(string) (string, bool), start func(context.Context, options) error) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: "Run the agent: it enrols with the join token on its first start, and then makes keys, deploys certificates and\n" +
			"verifies what is served, as the control plane assigns. Each flag can be given as an environment variable, CERTCTL_ and\n" +
			"the flag's name in upper case with _ for -, for example CERTCTL_JOIN_TOKEN.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, lookup); err != nil {
				return err
			}
			return start(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.server, "server", "", "URL of the control plane, https://HOST:PORT (required)")
	f.StringVar(&o.serverCA, "server-ca", "", "file with the CA certificate of the control plane; default: the system's")
	f.StringVar(&o.joinToken, "join-token", "", "join token, for the first start")
	f.StringVar(&o.joinTokenFile, "join-token-file", "", "file with the join token")
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/certctl-agent", "directory for identity, keys and journals")
	f.StringVar(&o.name, "name", "", "unique name of the agent; default: the host name")
	f.StringToStringVar(&o.labels, "label", nil, "labels, KEY=VALUE")
	f.StringSliceVar(&o.allow, "allow-command", nil, "program that targets may have run, absolute path; may be repeated")
	f.DurationVar(&o.rotation, "credential-rotation", agent.DefaultRotation, "how often to take a new credential")
	f.StringVar(&o.logFormat, "log-format", "console", "console or json")
	return c
}

// settings are the flags that can be given as environment variables.
func settings() []string {
	return []string{"server", "server-ca", "join-token", "join-token-file", "data-dir", "name", "label", "allow-command", "credential-rotation", "log-format"}
}

// fromEnvironment fills the flags that were not given.
func fromEnvironment(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	for _, name := range settings() {
		variable := "CERTCTL_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value, ok := lookup(variable)
		if !ok || cmd.Flags().Changed(name) {
			continue
		}
		if err := cmd.Flags().Set(name, value); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
	}
	return nil
}

func run(ctx context.Context, o options) error {
	if o.server == "" {
		return errors.New("--server is required, for example --server https://certctl.example.com:8443")
	}
	token, err := joinToken(o)
	if err != nil {
		return err
	}
	log, err := logger(o.logFormat)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	return agent.Run(ctx, agent.Config{
		Server: o.server, ServerCA: o.serverCA, DataDir: o.dataDir, Name: o.name, JoinToken: token, Labels: o.labels,
		AllowCommands: o.allow, Rotation: o.rotation,
	}, agent.Deps{Log: log})
}

func joinToken(o options) (secretbox.Secret, error) {
	if o.joinTokenFile == "" {
		return secretbox.NewSecret(o.joinToken), nil
	}
	if o.joinToken != "" {
		return secretbox.Secret{}, errors.New("--join-token and --join-token-file exclude each other")
	}
	b, err := os.ReadFile(o.joinTokenFile)
	if err != nil {
		return secretbox.Secret{}, fmt.Errorf("read join token: %w", err)
	}
	return secretbox.NewSecret(strings.TrimSpace(string(b))), nil
}

func logger(format string) (*zap.Logger, error) {
	c := zap.NewProductionConfig()
	c.Encoding = format
	if format == "console" {
		c = zap.NewDevelopmentConfig()
		c.Level = zap.NewAtomicLevelAt(zap.InfoLevel)
		c.Development, c.DisableStacktrace, c.DisableCaller = false, true, true
	}
	c.OutputPaths = []string{"stderr"}
	log, err := c.Build()
	if err != nil {
		return nil, fmt.Errorf("--log-format must be console or json: %w", err)
	}
	return log.Named("agent"), nil
}

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
	"go.uber.org/zap/zapcore"
	_ "golang.org/x/crypto/x509roots/fallback" // Mozilla's roots, for hosts that have none, as our image

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/logx"
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

// dataDir is where an agent keeps its own unless it is told.
const dataDir = "/var/lib/certctl-agent"

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "certctl-agent",
		Short:         "certctl on a host that serves certificates",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
	}
	root.AddCommand(runCommand(os.LookupEnv, run), prepareCommand(os.LookupEnv))
	return root
}

// options are the flags; each has an environment variable, so that a secret need not stand in a process list.
type options struct {
	server, serverCA, joinToken, joinTokenFile, dataDir, name string
	waitToEnrol                                               bool
	healthListen                                              string
	labels                                                    map[string]string
	allow                                                     []string
	rotation                                                  time.Duration
	logLevel, logFormat                                       string
}

// runCommand fills the options from flags and environment, and starts the agent with them.
func runCommand(lookup func(string) (string, bool), start func(context.Context, options) error) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: "Run the agent: it enrols with the join token on its first start, and then makes keys, deploys certificates and\n" +
			"verifies what is served, as the control plane assigns. Each flag can be given as an environment variable, CERTCTL_ and\n" +
			"the flag's name in upper case with _ for -, for example CERTCTL_JOIN_TOKEN; that of --health-listen is\n" +
			"CERTCTL_HEALTH_LISTEN_ADDR.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, lookup, settings()...); err != nil {
				return err
			}
			return start(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.server, "server", "", "URL of the control plane, https://HOST:PORT (required)")
	f.StringVar(&o.serverCA, "server-ca", "", "file with the CA certificate of the control plane, or directory with *.crt and *.pem files; read again when it changes; default: the system's")
	f.StringVar(&o.joinToken, "join-token", "", "join token, for the first start")
	f.StringVar(&o.joinTokenFile, "join-token-file", "", "file with the join token")
	f.BoolVar(&o.waitToEnrol, "wait-to-enrol", false, "wait while the server does not let this agent in, instead of ending; for Kubernetes")
	f.StringVar(&o.dataDir, "data-dir", dataDir, "directory for identity, keys and journals")
	f.StringVar(&o.name, "name", "", "unique name of the agent; default: the host name")
	f.StringToStringVar(&o.labels, "label", nil, "labels, KEY=VALUE")
	f.StringSliceVar(&o.allow, "allow-command", nil, "program that targets may have run, absolute path; may be repeated")
	f.DurationVar(&o.rotation, "credential-rotation", agent.DefaultRotation, "how often to take a new credential")
	f.StringVar(&o.healthListen, "health-listen", "", "address for /healthz and /readyz, plain HTTP; default: listen on nothing")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", logx.Console, "console or json")
	return c
}

// settings are the flags that can be given as environment variables.
func settings() []string {
	return []string{"server", "server-ca", "join-token", "join-token-file", "wait-to-enrol", "data-dir", "name", "label", "allow-command",
		"credential-rotation", "health-listen", "log-level", "log-format"}
}

// variable is the environment variable of a flag. That of --health-listen is called as the server's is.
func variable(flag string) string {
	if flag == "health-listen" {
		flag = "health-listen-addr"
	}
	return "CERTCTL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment fills the flags that were not given.
func fromEnvironment(cmd *cobra.Command, lookup func(string) (string, bool), flags ...string) error {
	for _, name := range flags {
		variable := variable(name)
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
	if o.joinToken != "" && o.joinTokenFile != "" {
		return errors.New("--join-token and --join-token-file exclude each other")
	}
	log, err := logx.New(logx.Config{Level: o.logLevel, Format: o.logFormat, Service: "agent"}, zapcore.Lock(os.Stderr))
	if err != nil {
		return fmt.Errorf("--log-level, --log-format: %w", err)
	}
	defer func() { _ = log.Sync() }()
	return agent.Run(ctx, agent.Config{
		Server: o.server, ServerCA: o.serverCA, DataDir: o.dataDir, Name: o.name, Labels: o.labels,
		JoinToken: secretbox.NewSecret(o.joinToken), JoinTokenFile: o.joinTokenFile, WaitToEnrol: o.waitToEnrol,
		AllowCommands: o.allow, Rotation: o.rotation, HealthListen: o.healthListen,
	}, agent.Deps{Log: log})
}

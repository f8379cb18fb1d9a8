// Command certctl is the server, its migrator, and the command-line client.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	_ "golang.org/x/crypto/x509roots/fallback" // Mozilla's roots, for hosts that have none, as our image

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/version"
	"github.com/certctl/certctl/services/cmd/certctl/internal/casimulator"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client"
	"github.com/certctl/certctl/services/cmd/certctl/internal/serve"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx))
}

func run(ctx context.Context) int {
	root := command()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "certctl:", err)
		return client.ExitCode(err)
	}
	return 0
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "certctl",
		Short:         "Certificates: inventory, issuance, renewal, deployment, proof",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Sprintf("there is no command %q; see certctl --help", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Sprintf("%v; see %s --help", err, cmd.CommandPath()))
	})
	root.AddCommand(serveCommand(), migrateCommand(), configCommand(), casimulator.Command())
	root.AddCommand(client.Commands(client.Config{Environ: os.Environ(), Also: []any{settings.Server{}}})...)
	return root
}

// usage is an error of the command line: exit code 2.
func usage(message string) error { return &client.Failure{Message: message, Code: 2} }

// load reads the settings; flags given on the command line win over variables.
func load(cmd *cobra.Command) (settings.Server, error) {
	var s settings.Server
	flags := make(map[string]string)
	known, err := config.Settings(s)
	if err != nil {
		return s, err
	}
	for _, k := range known {
		if f := cmd.Flags().Lookup(k.Flag); k.Flag != "" && f != nil && f.Changed {
			flags[k.Flag] = f.Value.String()
		}
	}
	warnings, err := config.Load(&s, os.Environ(), config.Options{Flags: flags, Also: []any{client.Settings{}}})
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "certctl: warning:", w)
	}
	return s, err
}

// addFlags gives the command a flag for each setting that has one.
func addFlags(cmd *cobra.Command) error {
	known, err := config.Settings(settings.Server{})
	if err != nil {
		return err
	}
	for _, k := range known {
		if k.Flag != "" {
			cmd.Flags().String(k.Flag, "", k.Help+" ("+k.Name+", default "+k.Default+")")
		}
	}
	return nil
}

func serveCommand() *cobra.Command {
	var service string
	names := append(serve.Services(), "gateway")
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run certctl: everything in one process, or one service",
		Long: "Run certctl. Without --service everything runs in this process, on a private Postgres in the data directory unless\n" +
			"CERTCTL_DATABASE_URL is set. With --service one of " + strings.Join(names, ", ") + "\nruns, as its Deployment does. " +
			"All settings are in deploy/ENVIRONMENTS.md.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd)
			if err != nil {
				return err
			}
			service = strings.ReplaceAll(service, "-", "")
			if service == "" {
				return serve.All(cmd.Context(), s, cmd.OutOrStdout())
			}
			if !slices.Contains(names, service) {
				return usage(fmt.Sprintf("--service %s: there is no such service; there are %s", service, strings.Join(names, ", ")))
			}
			return serve.One(cmd.Context(), s, service)
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "run one service: "+strings.Join(names, ", "))
	complete := cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("service", complete); err != nil {
		panic(err) // there is no such flag: a test would have seen it
	}
	mustFlags(cmd)
	return cmd
}

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring schemas and roles in CERTCTL_DATABASE_URL up to this version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd)
			if err != nil {
				return err
			}
			if err := serve.Migrate(cmd.Context(), s); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "schemas and roles are up to date")
			return err
		},
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check or document the settings"}
	check := &cobra.Command{
		Use:   "check",
		Short: "Check the settings in the environment without starting anything",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd)
			if err != nil {
				return err
			}
			if err := serve.Check(s); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "the settings are valid")
			return err
		},
	}
	mustFlags(check)
	document := &cobra.Command{
		Use:    "document",
		Short:  "Print the reference of all settings, Markdown",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return config.Document(cmd.OutOrStdout(), "Settings of certctl", settings.Server{}, client.Settings{})
		},
	}
	cmd.AddCommand(check, document)
	return cmd
}

// mustFlags ends the program when the settings struct itself is wrong, which a test would have seen.
func mustFlags(cmd *cobra.Command) {
	if err := addFlags(cmd); err != nil {
		panic(errors.Join(errors.New("settings struct"), err))
	}
}

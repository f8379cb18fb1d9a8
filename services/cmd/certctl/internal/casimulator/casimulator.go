// Package casimulator is the command certctl ca-simulator: it serves the simulator of commercial CAs and tells how to
// connect certctl to it.
package casimulator

import (
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	simulator "github.com/certctl/certctl/pkg/connector/casimulator"
)

type options struct {
	listen, control, data, scenario string
	hosts                           []string
}

// Command makes the command.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "ca-simulator",
		Short: "Simulate DigiCert, Sectigo, GlobalSign and Entrust, for trying settings and failures",
		Long:  help(),
		Example: "  certctl ca-simulator\n" +
			"  certctl ca-simulator --scenario scenario.yaml\n" +
			"  certctl issuers create --id digicert --name DigiCert --type digicert --config @.certctl-ca-simulator/digicert.json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:9700", "address of the CAs (HTTPS)")
	f.StringVar(&o.control, "control", "127.0.0.1:9701", "address of the control API (HTTP, no authentication: keep it on loopback)")
	f.StringVar(&o.data, "data", ".certctl-ca-simulator", "directory of keys and orders; the same directory again is the same CA")
	f.StringVar(&o.scenario, "scenario", "", "YAML file that says how the CAs behave")
	f.StringSliceVar(&o.hosts, "host", nil, "name or address that clients use besides localhost, for the server certificate; may be repeated")
	return cmd
}

func run(cmd *cobra.Command, o options) error {
	var config simulator.Config
	var err error
	if o.scenario != "" {
		if config.Scenario, err = simulator.ReadScenario(o.scenario); err != nil {
			return err
		}
	}
	// Settings need absolute paths: who reads them is another process in another directory.
	if config.Dir, err = filepath.Abs(o.data); err != nil {
		return fmt.Errorf("find directory %s: %w", o.data, err)
	}
	sim, err := simulator.New(config)
	if err != nil {
		return err
	}
	if err := serve(cmd, sim, o); err != nil {
		_ = sim.Close() // the first error says more
		return err
	}
	return sim.Close()
}

// serve returns when the context ends, which is the normal end.
func serve(cmd *cobra.Command, sim *simulator.Simulator, o options) error {
	at, err := sim.Start(cmd.Context(), simulator.Listen{Address: o.listen, ControlAddress: o.control, Hosts: o.hosts})
	if err != nil {
		return err
	}
	all := settings(sim, at, o.hosts)
	if err := write(o.data, all); err != nil {
		return err
	}
	if err := introduce(cmd.OutOrStdout(), sim, at, o, all); err != nil {
		return fmt.Errorf("print settings: %w", err)
	}
	return sim.Wait()
}

// help is long because it is the reference of scenarios.
func help() string {
	var b strings.Builder
	b.WriteString(`Serve a simulator of five APIs of commercial CAs: DigiCert CertCentral, Sectigo Certificate Manager, GlobalSign Atlas HVCA,
Entrust CA Gateway and Entrust Certificate Services. It signs with a CA of its own that nobody trusts, bills nothing,
keeps its orders in a directory, and fails on request in the ways that CAs and networks do.

At the start it prints, and writes into its directory, settings for each CA that "certctl issuers create" takes as they are.
SIGTERM and Ctrl-C end it; the orders stay.

A scenario says how the CAs behave:

`)
	for line := range strings.Lines(simulator.Example) {
		b.WriteString("  " + line)
	}
	fmt.Fprintf(&b, "\nCAs: %s.\nOperations: %s.\n\nFaults:\n", strings.Join(simulator.CAs(), ", "), strings.Join(simulator.Operations(), ", "))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, k := range simulator.Kinds() {
		fmt.Fprintf(w, "  %s\t%s\n", k, strings.ReplaceAll(simulator.Describe(k), "`", ""))
	}
	_ = w.Flush() // a strings.Builder takes everything
	b.WriteString(`
The control API changes all that while it runs: GET orders, requests, violations, faults; PUT faults, scenario; DELETE faults;
POST orders/ID/approve, reject, issue, forget; POST clock, reset. See docs/ca-simulator.md.`)
	return b.String()
}

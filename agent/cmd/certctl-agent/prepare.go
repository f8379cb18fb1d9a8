package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/agent/internal/datadir"
)

// prepareCommand is for whoever starts an agent that is not root in a directory that root has made.
func prepareCommand(lookup func(string) (string, bool)) *cobra.Command {
	var dir, owner string
	c := &cobra.Command{
		Use:   "prepare",
		Short: "Give the data directory to the user that the agent runs as",
		Long: "Make the data directory if it is missing, with the mode 0700, and give it and what is in it to a user. It follows no symbolic\n" +
			"links and can be repeated. It must run as root, and needs CAP_CHOWN alone; no agent may run in the directory meanwhile.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, lookup, "data-dir"); err != nil {
				return err
			}
			return prepare(cmd.OutOrStdout(), dir, owner)
		},
	}
	c.Flags().StringVar(&dir, "data-dir", dataDir, "directory for identity, keys and journals")
	c.Flags().StringVar(&owner, "owner", "", "who is to have it, UID or UID:GID (required)")
	return c
}

func prepare(out io.Writer, dir, owner string) error {
	if owner == "" {
		return errors.New("--owner is required, for example --owner 65532:65532")
	}
	o, err := datadir.ParseOwner(owner)
	if err != nil {
		return fmt.Errorf("--owner: %w", err)
	}
	done, err := datadir.Prepare(dir, o)
	for _, line := range told(dir, o, done) {
		if _, failed := fmt.Fprintln(out, line); failed != nil {
			return failed
		}
	}
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	return nil
}

func told(dir string, owner datadir.Owner, done datadir.Report) []string {
	var lines []string
	if done.Made {
		lines = append(lines, fmt.Sprintf("made %s", dir))
	}
	if done.Closed {
		lines = append(lines, fmt.Sprintf("closed %s to all but its owner (0700)", dir))
	}
	if done.Given > 0 {
		lines = append(lines, fmt.Sprintf("gave %s to %s", counted(done.Given), owner))
	}
	if len(lines) == 0 {
		lines = append(lines, fmt.Sprintf("%s is as it has to be, and belongs to %s", dir, owner))
	}
	return lines
}

func counted(n int) string {
	if n == 1 {
		return "1 file or directory"
	}
	return fmt.Sprintf("%d files and directories", n)
}

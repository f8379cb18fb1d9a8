package client

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// consent gives a command --yes and answers what asks the question before the deed. Only somebody at a terminal is asked: a
// script has said what it wants.
func (a *app) consent(c *cobra.Command, question string) func(s *session, id string) error {
	if question == "" {
		return func(*session, string) error { return nil }
	}
	yes := c.Flags().BoolP("yes", "y", false, "do not ask")
	return func(s *session, id string) error {
		if *yes || !a.cfg.Interactive(c.InOrStdin()) {
			return nil
		}
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "%s [y/N] ", show.Clean(fmt.Sprintf(question, id)))
		answer, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 64)).ReadString('\n')
		if err != nil && answer == "" {
			return &Failure{Message: "not done: no answer", Code: exitError, cause: err}
		}
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
			return nil
		default:
			return &Failure{Message: "not done", Code: exitError}
		}
	}
}

// isTerminal tells whether the input is a character device, /dev/null apart.
func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

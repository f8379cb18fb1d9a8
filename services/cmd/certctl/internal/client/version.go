package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/pkg/version"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// versionPath is where the gateway says its version; there is no RPC for it.
const versionPath = "/api/v1/version"

// program is a version as the gateway answers it.
type program struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
}

// versions are the answer of the command.
type versions struct {
	Client program  `json:"client"`
	Server *program `json:"server"`
}

// version shows the client's version always, and the server's when there is a server to ask.
func (a *app) version() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Show the versions of client and server", SilenceErrors: true, SilenceUsage: true}
	alone := c.Flags().Bool("client", false, "the client's only; no server is asked")
	c.Args = func(c *cobra.Command, args []string) error {
		if err := cobra.NoArgs(c, args); err != nil {
			return usage(err.Error())
		}
		return nil
	}
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(c *cobra.Command, _ []string) error {
		format, err := show.ParseFormat(c.Flag(flagOutput).Value.String())
		if err != nil {
			return usage(err.Error())
		}
		v := versions{Client: program{version.Version, version.Commit}}
		var failed error
		if !*alone {
			v.Server, failed = a.serverVersion(c)
		}
		if err := v.print(show.Printer{Out: c.OutOrStdout(), Format: format}); err != nil {
			return err
		}
		return failed
	}
	return c
}

func (v versions) print(p show.Printer) error {
	if p.Format == show.JSON || p.Format == show.YAML {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode version: %w", err)
		}
		return p.Encoded(b)
	}
	rows := [][]string{{"client", v.Client.Version, v.Client.Commit}}
	if v.Server != nil {
		rows = append(rows, []string{"server", v.Server.Version, v.Server.Commit})
	}
	return show.Align(p.Out, rows)
}

// serverVersion asks the server, if there is one.
func (a *app) serverVersion(c *cobra.Command) (*program, error) {
	ac, err := a.access(c)
	if errors.Is(err, fs.ErrNotExist) {
		c.PrintErrln("no server is named, and there is none in the data directory")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := ac.version(c.Context())
	return p, (&session{cfg: a.cfg, access: ac, handshake: &handshake{}}).unreached(err)
}

func (ac access) version(ctx context.Context) (*program, error) {
	r, err := ac.rest()
	if err != nil {
		return nil, err
	}
	defer r.close()
	answer, err := r.get(ctx, versionPath, "", "")
	if err != nil {
		return nil, err
	}
	return readVersion(answer)
}

func readVersion(answer answered) (*program, error) {
	if answer.status != http.StatusOK {
		return nil, fmt.Errorf("ask for the version: the server answered %s", answer.text)
	}
	var p program
	if err := json.Unmarshal(answer.body, &p); err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	return &p, nil
}

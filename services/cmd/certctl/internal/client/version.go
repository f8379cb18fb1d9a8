package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"

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
	var unreached *url.Error
	if errors.As(err, &unreached) {
		return nil, a.unreached(ac, unreached.Err)
	}
	return p, err
}

func (a *app) unreached(ac access, err error) error {
	s := &session{cfg: a.cfg, access: ac, handshake: &handshake{}}
	if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
		s.handshake.set(untrusted)
	}
	f := &Failure{Code: exitError, cause: err}
	s.adviseConnection(f)
	return f
}

func (ac access) version(ctx context.Context) (*program, error) {
	config, err := ac.tls()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ac.url+versionPath, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	if !ac.key.IsZero() {
		req.Header.Set("Authorization", "Bearer "+ac.key.Reveal())
	}
	transport := &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return readVersion(resp)
}

func readVersion(resp *http.Response) (*program, error) {
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for the version: the server answered %s", resp.Status)
	}
	var p program
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&p); err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	return &p, nil
}

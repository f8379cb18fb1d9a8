// Package file is the connector for programs that read certificates from files: it writes the files and, when told to,
// runs a command that makes the program read them.
package file

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// Type is the name of the connector in a target.
const Type = "file"

// config is the configuration as api.md has it. Either combined_path or both of fullchain_path and key_path are needed;
// chain_path and certificate_path come on top.
type config struct {
	FullchainPath   string   `json:"fullchain_path"`
	KeyPath         string   `json:"key_path"`
	ChainPath       string   `json:"chain_path"`
	CertificatePath string   `json:"certificate_path"`
	CombinedPath    string   `json:"combined_path"`
	Command         []string `json:"command"`
	plan.Ownership
}

// Connector implements plan.Connector, plan.Preflighter and plan.Reloader.
type Connector struct{}

// New makes the connector.
func New() Connector { return Connector{} }

// Validate checks the shape of a configuration.
func (Connector) Validate(raw json.RawMessage) error {
	_, err := read(raw)
	return err
}

// Plan lists the files: what holds a key first, what programs watch last.
func (Connector) Plan(raw json.RawMessage) (plan.Plan, error) {
	c, err := read(raw)
	if err != nil {
		return plan.Plan{}, err
	}
	return plan.Plan{Files: c.files()}, nil
}

// Preflight refuses a command that the agent would not run.
func (Connector) Preflight(_ context.Context, h plan.Host, raw json.RawMessage) error {
	c, err := read(raw)
	if err != nil || len(c.Command) == 0 {
		return err
	}
	return h.Runner.Allows(c.Command[0])
}

// Reload runs the configured command; without one there is nothing to do.
func (Connector) Reload(ctx context.Context, h plan.Host, raw json.RawMessage) error {
	c, err := read(raw)
	if err != nil {
		return err
	}
	if len(c.Command) == 0 {
		return nil
	}
	_, err = h.Runner.Run(ctx, c.Command)
	return err
}

func read(raw json.RawMessage) (config, error) {
	var c config
	err := plan.Decode(raw, &c)
	if err != nil {
		return config{}, err
	}
	return c, c.check()
}

func (c config) check() error {
	var v errs.Violations
	pair := c.CombinedPath == "" || c.FullchainPath != "" || c.KeyPath != ""
	plan.CheckPath(&v, "fullchain_path", c.FullchainPath, pair)
	plan.CheckPath(&v, "key_path", c.KeyPath, pair)
	plan.CheckPath(&v, "chain_path", c.ChainPath, false)
	plan.CheckPath(&v, "certificate_path", c.CertificatePath, false)
	plan.CheckPath(&v, "combined_path", c.CombinedPath, false)
	plan.CheckDistinct(&v, c.files())
	c.Check(&v)
	checkCommand(&v, c.Command)
	return v.Err()
}

func (c config) files() []plan.File {
	var files []plan.File
	add := func(path string, content plan.Content) {
		if path != "" {
			files = append(files, c.File(path, content))
		}
	}
	add(c.KeyPath, plan.Key)
	add(c.ChainPath, plan.Chain)
	add(c.CertificatePath, plan.Certificate)
	add(c.FullchainPath, plan.FullChain)
	add(c.CombinedPath, plan.Combined)
	return files
}

func checkCommand(v *errs.Violations, argv []string) {
	if len(argv) == 0 {
		return
	}
	if !filepath.IsAbs(argv[0]) || filepath.Clean(argv[0]) != argv[0] {
		v.Add("config.command[0]", "must be the absolute path of a program, not %q", argv[0])
	}
	if len(argv) > 64 {
		v.Add("config.command", "has more than 64 arguments")
	}
	for _, a := range argv {
		if len(a) > 4096 || strings.ContainsRune(a, 0) {
			v.Add("config.command", "has an argument that is too long or contains a zero byte")
			return
		}
	}
}

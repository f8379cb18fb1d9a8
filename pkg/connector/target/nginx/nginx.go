// Package nginx is the connector for nginx. It writes the full chain and the key, has nginx check a copy of its own
// configuration that points at the new files, and reloads the running master.
//
// The check does not use "nginx -T": nginx prints nothing when the configuration does not load, which is just the case
// before the first deployment, when the files are not there yet. The connector reads the configuration itself instead
// and follows the includes.
package nginx

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// Type is the name of the connector in a target.
const Type = "nginx"

// config is the configuration as api.md has it. config_path, nginx_path and prefix default to what the program was built
// with; prefix is nginx's own -p.
type config struct {
	FullchainPath string `json:"fullchain_path"`
	KeyPath       string `json:"key_path"`
	ConfigPath    string `json:"config_path"`
	NginxPath     string `json:"nginx_path"`
	Prefix        string `json:"prefix"`
	plan.Ownership
}

// Connector implements plan.Connector and all its optional powers.
type Connector struct{}

// New makes the connector.
func New() Connector { return Connector{} }

// Validate checks the shape of a configuration.
func (Connector) Validate(raw json.RawMessage) error {
	_, err := read(raw)
	return err
}

// Plan lists the key and the full chain. nginx has no directive for a chain apart, so there is no other layout.
func (Connector) Plan(raw json.RawMessage) (plan.Plan, error) {
	c, err := read(raw)
	if err != nil {
		return plan.Plan{}, err
	}
	return plan.Plan{Files: c.files(), NeedsEndpoint: true}, nil
}

// Preflight finds out whether the server's configuration uses the files at all: without that a deployment could write,
// reload and change nothing.
func (Connector) Preflight(ctx context.Context, h plan.Host, raw json.RawMessage) error {
	s, err := open(ctx, h, raw)
	if err != nil {
		return err
	}
	t, err := s.tree()
	if err != nil {
		return err
	}
	return t.references(s.config)
}

// Check runs "nginx -t" on a copy of the configuration in which the paths of the new files stand for the configured ones.
func (Connector) Check(ctx context.Context, h plan.Host, raw json.RawMessage, staged map[string]string) error {
	s, err := open(ctx, h, raw)
	if err != nil {
		return err
	}
	t, err := s.tree()
	if err != nil {
		return err
	}
	main, err := t.copyTo(h.TempDir, staged)
	if err != nil {
		return fmt.Errorf("copy the nginx configuration: %w", err)
	}
	_, err = s.run(ctx, "-t", "-c", main, "-p", s.build.prefix)
	return err
}

// Reload tells the running master to read its configuration again and waits for the first new worker. A master that does not
// like what it reads says so only in its log, and goes on as before.
func (Connector) Reload(ctx context.Context, h plan.Host, raw json.RawMessage) error {
	s, err := open(ctx, h, raw)
	if err != nil {
		return err
	}
	t, err := s.tree()
	if err != nil {
		return err
	}
	pid, err := s.running(t.pidPath(s.build))
	if err != nil {
		return err
	}
	w := watch(pid, t.logPath(s.build))
	_, err = s.run(ctx, "-s", "reload", "-c", s.build.conf, "-p", s.build.prefix)
	if err != nil {
		return err
	}
	return w.taken(ctx, h.Patience)
}

func read(raw json.RawMessage) (config, error) {
	var c config
	err := plan.Decode(raw, &c)
	if err != nil {
		return config{}, err
	}
	var v errs.Violations
	plan.CheckPath(&v, "fullchain_path", c.FullchainPath, true)
	plan.CheckPath(&v, "key_path", c.KeyPath, true)
	plan.CheckPath(&v, "config_path", c.ConfigPath, false)
	plan.CheckPath(&v, "nginx_path", c.NginxPath, false)
	plan.CheckDirectory(&v, "prefix", c.Prefix)
	plan.CheckDistinct(&v, c.files())
	c.Check(&v)
	return c, v.Err()
}

// files puts the key first: what watches files watches the certificate.
func (c config) files() []plan.File {
	return []plan.File{c.File(c.KeyPath, plan.Key), c.File(c.FullchainPath, plan.FullChain)}
}

// Package plan holds the words that the deployment engine and its connectors share. A connector knows one kind of
// server: it turns a target's configuration into the files to write, and may know how to check new files and how to
// make the server read them. The engine does everything else, the same for all of them.
package plan

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"
)

// Content names what a file holds.
type Content int

// The contents. FullChain is the leaf and its intermediates, leaf first; Combined is the same with the key after it.
const (
	FullChain Content = iota + 1
	Certificate
	Chain
	Key
	Combined
)

// Secret tells whether the file holds a private key.
func (c Content) Secret() bool { return c == Key || c == Combined }

// DefaultMode is the mode of a file that did not exist and has none configured: 0600 with a key, 0644 without.
func (c Content) DefaultMode() fs.FileMode {
	if c.Secret() {
		return 0o600
	}
	return 0o644
}

// String gives the name for messages.
func (c Content) String() string {
	switch c {
	case FullChain:
		return "full chain"
	case Certificate:
		return "certificate"
	case Chain:
		return "chain"
	case Key:
		return "private key"
	case Combined:
		return "combined file"
	default:
		return "unknown content"
	}
}

// File is one file to write. A zero mode, owner or group keeps that of the file that is there, and takes the default of
// the content and of the process for a new one. Owner and group are names or decimal numbers.
type File struct {
	Path    string
	Content Content
	Mode    fs.FileMode
	Owner   string
	Group   string
}

// Plan is what a connector wants done. Files are swapped in order, so a connector lists the one that others watch last.
type Plan struct {
	Files []File
	// NeedsEndpoint refuses a target without an address to verify: there is no other proof that the server serves the
	// new certificate.
	NeedsEndpoint bool
}

// Connector knows one kind of server.
type Connector interface {
	// Validate checks the shape of a configuration and touches nothing of the host, so that the control plane can use
	// it. The error carries a violation per field that is wrong, named "config.<field>".
	Validate(config json.RawMessage) error
	// Plan gives the files of a valid configuration.
	Plan(config json.RawMessage) (Plan, error)
}

// Preflighter looks at the server's own configuration before anything is written.
type Preflighter interface {
	Preflight(ctx context.Context, h Host, config json.RawMessage) error
}

// Checker has the server's own checker judge the new files while the old ones are still in place. Staged gives the path of
// the new file for each path of the plan.
type Checker interface {
	Check(ctx context.Context, h Host, config json.RawMessage, staged map[string]string) error
}

// Reloader makes the server read its files again. An error that wraps ErrNotRunning says that there is no server to
// tell. Without this power a target needs no reload.
type Reloader interface {
	Reload(ctx context.Context, h Host, config json.RawMessage) error
}

// ErrNotRunning says that the server is not running.
var ErrNotRunning = errors.New("server is not running")

// Host is what a connector may use of the machine it runs on.
type Host struct {
	Runner Runner
	// TempDir is an empty directory that only this process may read. The engine removes it, also after a crash.
	TempDir string
	// Patience is how long a connector waits for a server to do what it was told.
	Patience time.Duration
}

// Runner runs commands under the agent's rules.
type Runner interface {
	// Allows tells whether Run would start the program, so that a refusal comes before anything is changed.
	Allows(path string) error
	// Run starts argv without a shell and waits for it. The output is bounded and holds both streams.
	Run(ctx context.Context, argv []string) (string, error)
	// RunOneOf is Run for a program that is also allowed when its path is one of the usual places.
	RunOneOf(ctx context.Context, argv, places []string) (string, error)
	// Ask is RunOneOf for a question whose answer is of no interest to people: it is kept out of the deployment's output.
	Ask(ctx context.Context, argv, places []string) (string, error)
}

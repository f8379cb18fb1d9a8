// Package target puts certificates where they are served. One engine does it for every kind of server: it checks the
// material, stages the new files beside the old ones, has the server's own checker judge them, swaps them in, reloads,
// and then connects as a client would and reads what is served. Whatever fails is rolled back, and a crash at any point
// is mended by Recover. A connector (see package plan) knows only what is particular to its server.
//
// # What the swap promises
//
// Each file is replaced by one rename, so nobody sees half a file. Several files are several renames: between the first and
// the last one, for some microseconds, key and certificate on disk do not fit, and a server that starts just then refuses
// them. A running server is told to reload only when all are in place. After a crash in between, Recover completes the
// swap. A single combined file has no such moment.
//
// # Symbolic links
//
// A configured path may be, or lead through, symbolic links, as certbot's live/ directory does: the file at the end is
// replaced and the links stay. A link owned by anyone but root or the agent's user is refused, and so is a path through a
// directory that everybody may write to (unless it is sticky, and the next part belongs to root or the agent).
package target

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/target/file"
	"github.com/certctl/certctl/pkg/connector/target/nginx"
	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Connector knows one kind of server.
type Connector = plan.Connector

// Plan is what a connector wants done.
type Plan = plan.Plan

// Types gives the kinds of targets there are, sorted.
func Types() []string { return []string{file.Type, nginx.Type} }

// New makes the connector of a type.
func New(kind string) (Connector, error) {
	switch kind {
	case file.Type:
		return file.New(), nil
	case nginx.Type:
		return nginx.New(), nil
	default:
		return nil, errs.Field("type", "unknown target type %q; known are %s", kind, strings.Join(Types(), ", "))
	}
}

// Validate checks the shape of a target: its type, configuration and endpoint. It touches nothing of the host, so the
// control plane uses it before it stores a target.
func Validate(kind string, config json.RawMessage, endpoint Endpoint) error {
	c, err := New(kind)
	if err != nil {
		return err
	}
	err = c.Validate(config)
	if err != nil {
		return err
	}
	p, err := c.Plan(config)
	if err != nil {
		return err
	}
	return endpoint.check(p.NeedsEndpoint)
}

// Material is what a deployment puts in place. CertificatePEM is the leaf; ChainPEM its intermediates, each signing the one
// before it. The chain may also stand in CertificatePEM behind the leaf. Key is PEM (PKCS #8, SEC 1 or PKCS #1, not
// encrypted). Names are those that the leaf must cover.
type Material struct {
	CertificatePEM []byte
	ChainPEM       []byte
	Key            secretbox.Secret
	Names          []string
}

// Request is one deployment. Version is the caller's name for the material and is only recorded. Force has the server
// reload even when everything is in place and served.
type Request struct {
	TargetID string
	Type     string
	Config   json.RawMessage
	Endpoint Endpoint
	Material Material
	Version  string
	Force    bool
}

// VerifyRequest asks what a target serves now. Type and Config are needed only without an endpoint address: then the files
// are read instead. Names are those of the certificate; the first one stands in for an empty server name.
type VerifyRequest struct {
	Type     string
	Config   json.RawMessage
	Endpoint Endpoint
	Names    []string
}

// Step is a part of a deployment, as results and errors name it.
type Step string

// The steps in order. A swap of several files has a label for each, "swap-1" and so on, in hooks.
const (
	StepPreflight Step = "preflight"
	StepStage     Step = "stage"
	StepValidate  Step = "validate"
	StepJournal   Step = "journal"
	StepSwap      Step = "swap"
	StepFsync     Step = "fsync"
	StepReload    Step = "reload"
	StepVerify    Step = "verify"
	StepCommit    Step = "commit"
)

// Outcome says in a word how a deployment ended.
type Outcome string

// The outcomes. Only Served and Unchanged come without an error.
const (
	// OutcomeServed: the new certificate is in place and served.
	OutcomeServed Outcome = "served"
	// OutcomeUnchanged: it was already in place; it is served.
	OutcomeUnchanged Outcome = "unchanged"
	// OutcomeUntouched: the deployment failed and no file was changed.
	OutcomeUntouched Outcome = "untouched"
	// OutcomeRolledBack: the deployment failed and the old files are back.
	OutcomeRolledBack Outcome = "rolled_back"
	// OutcomeKept: the server is not running. The new files, which its checker accepted, are in place: there is nothing
	// running that old ones would keep alive, and before a first deployment the server often cannot start without them.
	OutcomeKept Outcome = "kept"
	// OutcomeBroken: the old files could not be put back; the error says which.
	OutcomeBroken Outcome = "broken"
)

// Result says what a deployment did. It comes with an error, too.
type Result struct {
	Outcome Outcome
	// Step is where it failed; empty on success.
	Step Step
	// Reloaded tells whether the server was told to read its files.
	Reloaded bool
	// RolledBack tells whether the old files were put back; RollbackVerified, whether what was served before is served again.
	RolledBack       bool
	RollbackVerified bool
	// Served is what was seen last.
	Served Served
	// Output is what commands printed, bounded.
	Output string
	// Warnings are for people: things that are allowed and not wise.
	Warnings []string
}

// AllowList names the programs that the agent may run for a target, by exact absolute path. It has the last word over
// what the control plane asks for. The usual places of a server's own program need no entry.
type AllowList []string

func (a AllowList) has(path string) bool { return slices.Contains(a, path) }

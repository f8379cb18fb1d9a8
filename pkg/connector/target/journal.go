package target

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
)

// The phases of a deployment in the journal. They only go forward.
const (
	// phaseStage: files may have been written beside the old ones; no old one was touched.
	phaseStage = "stage"
	// phaseSwap: everything is staged, checked and backed up; some files may have been swapped.
	phaseSwap = "swap"
	// phaseRollback: some files may have been put back.
	phaseRollback = "rollback"
)

// intent is what the journal holds of a deployment under way: enough to end it either way, and no key.
type intent struct {
	TargetID string                  `json:"target_id"`
	Type     string                  `json:"type"`
	Config   json.RawMessage         `json:"config"`
	Endpoint Endpoint                `json:"endpoint"`
	Version  string                  `json:"version"`
	Phase    string                  `json:"phase"`
	Files    []*swapFile             `json:"files"`
	Want     []string                `json:"want"`   // fingerprints of the new chain
	Before   []string                `json:"before"` // fingerprints of what was served before; empty when nothing was
	KeyType  x509.PublicKeyAlgorithm `json:"key_type"`
}

// state is what is known of a target between deployments.
type state struct {
	Version  string   `json:"version"`
	Paths    []string `json:"paths"`    // what this target wrote: these may be replaced whatever is in them now
	Digest   string   `json:"digest"`   // over the paths and bytes of all files
	Reloaded bool     `json:"reloaded"` // the server read these bytes and served them
}

// shelf is the directory of one target in the journal.
type shelf struct{ dir string }

var targetID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func (e *Engine) shelf(id string) (shelf, error) {
	if !targetID.MatchString(id) {
		return shelf{}, errs.Field("target_id", "must be letters, digits, dots, hyphens and underscores, at most 128")
	}
	s := shelf{dir: filepath.Join(e.config.JournalDir, id)}
	return s, os.MkdirAll(s.dir, 0o700)
}

func (s shelf) intentPath() string { return filepath.Join(s.dir, "journal.json") }
func (s shelf) statePath() string  { return filepath.Join(s.dir, "state.json") }

// intent reads the journal; nil when no deployment is under way.
func (s shelf) intent() (*intent, error) {
	var i intent
	ok, err := load(s.intentPath(), &i)
	if err != nil || !ok {
		return nil, err
	}
	return &i, nil
}

func (s shelf) record(i *intent) error { return store(s.intentPath(), i) }

func (s shelf) forget() error {
	err := os.Remove(s.intentPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(s.dir))
}

// state reads what is known of the target. What cannot be read is not known, which costs one reload.
func (s shelf) state() state {
	var st state
	_, err := load(s.statePath(), &st)
	if err != nil {
		return state{}
	}
	return st
}

func (s shelf) remember(st state) error { return store(s.statePath(), st) }

// temp makes a directory for a connector; sweep removes those that a crash left.
func (s shelf) temp() (string, error) { return os.MkdirTemp(s.dir, "check-") }

func (s shelf) sweep() error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		if strings.HasPrefix(d.Name(), "check-") {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, d.Name())))
		}
	}
	return err
}

func load(path string, into any) (bool, error) {
	data, err := os.ReadFile(path) // written by store alone, in a directory of our own
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, json.Unmarshal(data, into)
}

// store writes a file so that after a crash it is the old one or the new one, whole.
func store(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

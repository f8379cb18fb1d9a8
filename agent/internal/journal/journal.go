// Package journal remembers on disk what assignments led to, so that one that comes again is answered and not done again.
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/disk"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// retention is how long a result is kept after it was made: longer than any assignment lives on the server.
const retention = 30 * 24 * time.Hour

const extension = ".result"

// Journal is a directory with a file for each result.
type Journal struct{ dir string }

// Open makes the directory if need be and drops what is out of date.
func Open(dir string) (*Journal, error) {
	if err := disk.PrivateDir(dir); err != nil {
		return nil, err
	}
	if err := disk.Sweep(dir); err != nil {
		return nil, err
	}
	j := &Journal{dir: dir}
	return j, j.Prune(time.Now())
}

var safeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func (j *Journal) path(assignmentID string) (string, error) {
	if !safeName.MatchString(assignmentID) {
		return "", fmt.Errorf("assignment id %q cannot be a file's name", assignmentID)
	}
	return filepath.Join(j.dir, assignmentID+extension), nil
}

// Put stores a result before it is reported.
func (j *Journal) Put(r *agentv1.ReportAssignmentRequest) error {
	path, err := j.path(r.GetAssignmentId())
	if err != nil {
		return err
	}
	b, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	return disk.Write(path, b, 0o600)
}

// Get answers the stored result of an assignment; nil when there is none.
func (j *Journal) Get(assignmentID string) (*agentv1.ReportAssignmentRequest, error) {
	path, err := j.path(assignmentID)
	if err != nil {
		return nil, nil //nolint:nilerr // under such an id nothing was ever stored
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	r := &agentv1.ReportAssignmentRequest{}
	if err := proto.Unmarshal(b, r); err != nil {
		// A result that cannot be read is as none: the work can be done again.
		return nil, nil //nolint:nilerr // see above
	}
	return r, nil
}

// Prune drops results that no assignment can ask for any more.
func (j *Journal) Prune(now time.Time) error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return fmt.Errorf("list results: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), extension) || now.Sub(info.ModTime()) < retention {
			continue
		}
		if err := disk.Remove(filepath.Join(j.dir, e.Name())); err != nil {
			return fmt.Errorf("drop old result: %w", err)
		}
	}
	return nil
}

package embeddedpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/internal/pgserver"
)

// socketPrefix begins the names of socket directories outside the data directory.
const socketPrefix = "certctl-pg-"

// halfSuffix follows the name of the data directory while it is being made, before something random.
const halfSuffix = ".new"

// site is a data directory of certctl, as Postgres uses it.
type site struct {
	dir     string // absolute
	account pgserver.Account
}

func newSite(dataDir string) (site, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return site{}, fmt.Errorf("find the data directory: %w", err)
	}
	account, err := pgserver.Unprivileged()
	if err != nil {
		return site{}, err
	}
	s := site{dir: dir, account: account}
	return s, s.makeDir()
}

// makeDir makes the data directory. When root starts, the account of Postgres must pass through it; what lies in it is kept
// from others by the modes of the files. A home directory is not ours to open.
func (s site) makeDir() error {
	mode := fs.FileMode(0o700)
	if s.account.Drops() {
		mode = 0o711
	}
	if err := os.MkdirAll(s.dir, mode); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if !s.account.Drops() {
		return nil
	}
	if home, err := os.UserHomeDir(); err == nil && home == s.dir {
		return s.account.CheckPath(s.dir)
	}
	info, err := os.Stat(s.dir)
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if err := os.Chmod(s.dir, info.Mode().Perm()|0o011); err != nil {
		return fmt.Errorf("open the data directory to user %s: %w", s.account.Name, err)
	}
	return s.account.CheckPath(s.dir)
}

func (s site) home() string    { return filepath.Join(s.dir, "postgres") }
func (s site) data() string    { return filepath.Join(s.home(), "data") }
func (s site) logFile() string { return filepath.Join(s.dir, "postgres.log") }

// socketNote is where the name of a socket directory elsewhere is kept. It lies outside of what the account of Postgres can write.
func (s site) socketNote() string { return filepath.Join(s.dir, "postgres.socket") }

// lock takes the data directory for this process. The kernel gives it back however the process ends.
func (s site) lock() (unlock func(), err error) {
	unlock, err = disk.Lock(filepath.Join(s.dir, "postgres.lock"))
	if other, ok := errors.AsType[*disk.InUseError](err); ok {
		return nil, &InUseError{Dir: s.dir, PID: other.PID}
	}
	return unlock, err
}

func (s site) prepare() error {
	if err := s.account.MakeDir(s.home()); err != nil {
		return err
	}
	return rotate(s.logFile())
}

// major gives the version that made the data directory, or 0 when there is none yet.
func (s site) major() (int, error) {
	content, err := os.ReadFile(filepath.Join(s.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of the data directory: %w", err)
	}
	major, err := strconv.Atoi(string(bytes.TrimSpace(content)))
	if err != nil {
		return 0, fmt.Errorf("read version of the data directory: %w", err)
	}
	return major, nil
}

// initialise makes the data directory beside its place and moves it there when it is whole, so that a start that was
// interrupted is begun anew. Each try has a place of its own: the initdb of a start that was killed may still be writing.
func (s site) initialise(ctx context.Context, binaries pgserver.Binaries, log *zap.Logger) error {
	s.clearInterrupted(log)
	major, err := s.major()
	if err != nil || major != 0 {
		return err
	}
	log.Info("making the database of a first start", zap.String("path", s.data()), zap.Int("version", binaries.Major))
	half := s.data() + halfSuffix + rand.Text()
	err = pgserver.InitDB(ctx, pgserver.InitConfig{
		Binaries: binaries, Account: s.account, Dir: half, Superuser: superuser, Args: []string{"--data-checksums"},
	})
	if err != nil {
		return err
	}
	if err := os.Rename(half, s.data()); err != nil {
		return fmt.Errorf("put the new database in place: %w", err)
	}
	return nil
}

// clearInterrupted removes what interrupted first starts have left. What cannot be removed now is in nobody's way, and the
// next start tries again.
func (s site) clearInterrupted(log *zap.Logger) {
	halves, err := filepath.Glob(s.data() + halfSuffix + "*")
	for _, half := range halves {
		err = errors.Join(err, os.RemoveAll(half))
	}
	if err != nil {
		log.Warn("the rest of an interrupted first start is not gone yet", zap.Error(err))
	}
}

// socketDir gives a private directory for the socket: in the data directory, or, when the path would be too long for a
// socket, a short one in the temporary directory, noted in the data directory.
func (s site) socketDir() (string, error) {
	s.removeSocketDir()
	dir := filepath.Join(s.home(), "run")
	if len(dir) <= pgserver.MaxSocketDir {
		return dir, s.account.MakeDir(dir)
	}
	dir, err := os.MkdirTemp("", socketPrefix)
	if err != nil {
		return "", fmt.Errorf("make a directory for the socket: %w", err)
	}
	if len(dir) > pgserver.MaxSocketDir {
		return "", errors.Join(fmt.Errorf("the paths of both the data directory and %s are too long for a Unix socket (%d bytes): "+
			"choose a shorter CERTCTL_DATA_DIR or TMPDIR", dir, pgserver.MaxSocketDir), os.Remove(dir))
	}
	if err := s.account.MakeDir(dir); err != nil {
		return "", err
	}
	if err := s.account.CheckPath(dir); err != nil {
		return "", err
	}
	if err := os.WriteFile(s.socketNote(), []byte(dir+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("note the directory of the socket: %w", err)
	}
	return dir, nil
}

// removeSocketDir removes the directory that an earlier start made elsewhere: only if it is what it should be, and
// only the files that Postgres makes in it. What is left over does no harm, so there is no error.
func (s site) removeSocketDir() {
	content, err := os.ReadFile(s.socketNote())
	if err != nil {
		return
	}
	dir := strings.TrimSpace(string(content))
	info, err := os.Lstat(dir) //nolint:gosec // the name comes from a note that only we may write, and is checked below
	if err == nil && info.IsDir() && strings.HasPrefix(filepath.Base(dir), socketPrefix) && s.owns(info) {
		name := filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(pgserver.DefaultPort))
		_ = os.Remove(name)           //nolint:gosec // checked above
		_ = os.Remove(name + ".lock") //nolint:gosec // checked above
		_ = os.Remove(dir)            //nolint:gosec // checked above
	}
	_ = os.Remove(s.socketNote())
}

func (s site) owns(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == s.account.UID()
}

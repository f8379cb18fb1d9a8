package testpg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/certctl/certctl/pkg/internal/pgserver"
)

// superuser owns everything, as the user of CERTCTL_DATABASE_URL does in production.
const superuser = "certctl"

// initArgs make data directories small and quick; no data here outlives the test.
var initArgs = []string{"--no-sync", "--wal-segsize=1"}

// settings trade durability for speed.
func settings() map[string]string {
	return map[string]string{
		"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
		"wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1h",
		"max_connections": "400", "shared_buffers": "32MB", "autovacuum": "off", "jit": "off",
	}
}

// site is a directory with a data directory in it, that is removed with the test process.
type site struct {
	binaries pgserver.Binaries
	account  pgserver.Account
	dir      string   // short, because the socket lies in it
	leash    *os.File // while it is open the watchdog waits; the kernel closes it with the process
}

// newSite makes a directory with a fresh data directory.
func newSite(ctx context.Context) (*site, error) {
	binaries, err := findBinaries(ctx)
	if err != nil {
		return nil, err
	}
	account, err := pgserver.Unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ctpg-")
	if err != nil {
		return nil, fmt.Errorf("make directory for test server: %w", err)
	}
	s := &site{binaries: binaries, account: account, dir: dir}
	if err := s.prepare(ctx); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

func (s *site) prepare(ctx context.Context) error {
	if len(s.dir) > pgserver.MaxSocketDir {
		return fmt.Errorf("the temporary directory %s is too long for a Unix socket: set TMPDIR to a shorter one", s.dir)
	}
	if err := s.account.MakeDir(s.dir); err != nil {
		return err
	}
	if err := s.account.CheckPath(s.dir); err != nil {
		return err
	}
	template, err := templateDir(ctx, s.binaries, s.account)
	if err != nil {
		return err
	}
	if err := copyTree(template, s.data(), s.account); err != nil {
		return err
	}
	return s.watch()
}

func (s *site) data() string { return filepath.Join(s.dir, "data") }

// watch starts a process that waits for the end of this one (its standard input ends then, even after kill -9), ends the server,
// and removes the directory.
func (s *site) watch() error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe for watchdog: %w", err)
	}
	defer func() { _ = reader.Close() }() // the child has its own
	const script = `cat >/dev/null; "$1" stop -D "$2/data" -m immediate -w -t 20; rm -rf "$2"`
	cmd := exec.Command("/bin/sh", "-c", script, "testpg-watchdog", s.binaries.Program("pg_ctl"), s.dir) //nolint:noctx // it outlives this process
	cmd.Dir, cmd.Stdin = "/", reader
	cmd.SysProcAttr = s.account.Attributes()
	if err := cmd.Start(); err != nil {
		_ = writer.Close()
		return fmt.Errorf("start watchdog of test server: %w", err)
	}
	s.leash = writer
	return nil
}

// release lets the watchdog end the server and remove the directory.
func (s *site) release() { _ = s.leash.Close() }

func (s *site) config(port int, extra map[string]string) pgserver.Config {
	all := settings()
	for name, value := range extra {
		all[name] = value
	}
	return pgserver.Config{
		Binaries: s.binaries, Account: s.account, Superuser: superuser, Settings: all,
		DataDir: s.data(), SocketDir: s.dir, Port: port, LogFile: filepath.Join(s.dir, "log"),
	}
}

func (s *site) url(port int, database string) string { return s.config(port, nil).URL(database) }

func findBinaries(ctx context.Context) (pgserver.Binaries, error) {
	found, err := pgserver.Find(ctx, os.Getenv("CERTCTL_POSTGRES_BIN"))
	if err != nil {
		return pgserver.Binaries{}, err
	}
	if len(found) == 0 {
		return pgserver.Binaries{}, pgserver.ErrNoBinaries
	}
	return found[0], nil
}

// templateDir gives a data directory as initdb makes it. It is made once per version of Postgres and kept in the user's
// cache: initdb takes longer than most tests.
func templateDir(ctx context.Context, binaries pgserver.Binaries, account pgserver.Account) (string, error) {
	root, err := cacheRoot()
	if err != nil {
		return "", err
	}
	unlock, err := lockFile(filepath.Join(root, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	key := sha256.Sum256([]byte(binaries.Dir + "\x00" + strings.Join(initArgs, "\x00")))
	dir := filepath.Join(root, fmt.Sprintf("pg%d-%s", binaries.Major, hex.EncodeToString(key[:6])))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	return dir, makeTemplate(ctx, binaries, account, dir)
}

func makeTemplate(ctx context.Context, binaries pgserver.Binaries, account pgserver.Account, dir string) error {
	work, err := os.MkdirTemp("", "ctpg-init-") // where the account can go, unlike to root's cache
	if err != nil {
		return fmt.Errorf("make directory for initdb: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := account.MakeDir(work); err != nil {
		return err
	}
	data := filepath.Join(work, "data")
	err = pgserver.InitDB(ctx, pgserver.InitConfig{Binaries: binaries, Account: account, Dir: data, Superuser: superuser, Args: initArgs})
	if err != nil {
		return err
	}
	half := dir + ".new"
	if err := os.RemoveAll(half); err != nil {
		return fmt.Errorf("clear cache of test server: %w", err)
	}
	if err := copyTree(data, half, pgserver.Account{}); err != nil {
		return err
	}
	if err := os.Rename(half, dir); err != nil {
		return fmt.Errorf("keep data directory for tests: %w", err)
	}
	return nil
}

func cacheRoot() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	root := filepath.Join(base, fmt.Sprintf("certctl-testpg-%d", os.Geteuid()))
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", fmt.Errorf("make cache of test server: %w", err)
	}
	return root, nil
}

// lockFile waits for the lock that parallel test processes share.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("take lock: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// copyTree copies directories and files, which then belong to the account.
func copyTree(from, to string, account pgserver.Account) error {
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if entry.IsDir() {
			return account.MakeDir(target)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, content, 0o600); err != nil {
			return err
		}
		return account.Own(target)
	})
	if err != nil {
		return fmt.Errorf("copy data directory: %w", err)
	}
	return nil
}

package embeddedpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/internal/pgserver"
	"github.com/certctl/certctl/pkg/run"
)

const (
	// fetchedVersion is what is fetched where no Postgres is installed.
	fetchedVersion = embeddedpostgres.V16
	fetchedMajor   = 16

	mavenCentral = "https://repo1.maven.org/maven2"

	fetchSayEvery = 10 * time.Second
	fetchWithin   = 10 * time.Minute
)

// fetch gives the programs of a pinned version: those of an earlier start, else from the network.
func fetch(ctx context.Context, cfg Config, place site) (pgserver.Binaries, error) {
	home := filepath.Join(place.dir, "postgres-"+string(fetchedVersion))
	if b, err := pgserver.Inspect(ctx, filepath.Join(home, "bin")); err == nil {
		return b, nil
	}
	repository := cfg.repository
	if repository == "" {
		repository = mavenCentral
	}
	cfg.Log.Info("no Postgres is installed: fetching one, once, for this data directory only (about 30 MB); to use another, set CERTCTL_POSTGRES_BIN",
		zap.String("version", string(fetchedVersion)), zap.String("from", repository), zap.String("path", home))
	work := home + ".new"
	if err := os.RemoveAll(work); err != nil {
		return pgserver.Binaries{}, fmt.Errorf("clear an interrupted download: %w", err)
	}
	fetchErr := fetchInto(ctx, repository, work, cfg.Log)
	binaries, err := settle(ctx, work, home)
	if err != nil {
		return pgserver.Binaries{}, errors.Join(pgserver.ErrNoBinaries,
			fmt.Errorf("and fetching version %s from %s did not work: %w", fetchedVersion, repository, errors.Join(fetchErr, err)), os.RemoveAll(work))
	}
	cfg.Log.Info("fetched Postgres", zap.String("version", string(fetchedVersion)))
	return binaries, nil
}

// fetchInto downloads, checks and unpacks the programs. The library has no call for that alone: its Start goes on to initdb, which is
// made to refuse by a locale that does not exist, because our data directory and process are made with other rights and settings
// than the library's. So an error is normal here, and settle looks at what is there.
func fetchInto(ctx context.Context, repository, work string, log *zap.Logger) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	library := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(fetchedVersion).BinaryRepositoryURL(repository).Port(port).Locale("none-so-that-initdb-refuses").Logger(io.Discard).
		CachePath(filepath.Join(work, "download")).BinariesPath(filepath.Join(work, "unpacked")).
		RuntimePath(filepath.Join(work, "runtime")).DataPath(filepath.Join(work, "runtime", "data")))
	done := make(chan error, 1)
	// The library takes no context; a download that is given up ends with the process.
	run.NewGroup(context.WithoutCancel(ctx), run.Config{}).Go("fetch postgres", func(context.Context) error {
		done <- library.Start()
		return nil
	})
	return awaitFetch(ctx, done, log)
}

func awaitFetch(ctx context.Context, done <-chan error, log *zap.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	began := time.Now()
	say := time.NewTimer(fetchSayEvery)
	defer say.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-say.C:
			log.Info("still fetching Postgres", zap.Duration("since", time.Since(began).Round(time.Second)))
			say.Reset(fetchSayEvery)
		}
	}
}

// settle checks what was unpacked and puts it in its place, readable for the account of Postgres.
func settle(ctx context.Context, work, home string) (pgserver.Binaries, error) {
	unpacked := filepath.Join(work, "unpacked")
	if _, err := pgserver.Inspect(ctx, filepath.Join(unpacked, "bin")); err != nil {
		return pgserver.Binaries{}, err
	}
	if err := openTree(unpacked); err != nil {
		return pgserver.Binaries{}, err
	}
	if err := os.RemoveAll(home); err != nil {
		return pgserver.Binaries{}, fmt.Errorf("clear the place of the programs: %w", err)
	}
	if err := os.Rename(unpacked, home); err != nil {
		return pgserver.Binaries{}, fmt.Errorf("put the programs in place: %w", err)
	}
	if err := os.RemoveAll(work); err != nil {
		return pgserver.Binaries{}, fmt.Errorf("remove the download: %w", err)
	}
	return pgserver.Inspect(ctx, filepath.Join(home, "bin"))
}

// openTree makes everything readable, and directories and programs passable, whatever the umask was.
func openTree(root string) error {
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode) //nolint:gosec // our own fresh download, in a directory that nobody else may write
	})
	if err != nil {
		return fmt.Errorf("make the programs readable: %w", err)
	}
	return nil
}

// freePort satisfies the library's check that its port is free; nothing will listen there.
func freePort(ctx context.Context) (uint32, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	address, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("find a free port: not a TCP address")
	}
	return uint32(address.Port), nil // ports have 16 bits
}

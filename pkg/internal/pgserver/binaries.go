package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// OldestMajor is the oldest version of Postgres that certctl runs on.
const OldestMajor = 14

// ErrNoBinaries tells that no supported Postgres was found.
var ErrNoBinaries = errors.New("found no Postgres " + strconv.Itoa(OldestMajor) + " or newer (the programs postgres and initdb): " +
	"install the server package of your distribution (Debian: postgresql, Fedora: postgresql-server, Homebrew: postgresql@16), " +
	"or set CERTCTL_POSTGRES_BIN to the directory that holds them")

// places are where distributions and packagers install the server, PATH apart.
var places = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // PostgreSQL's own packages for Red Hat and SUSE
	"/usr/libexec/postgresql*",                           // Alpine
	"/usr/lib/postgresql*/bin",                           // SUSE
	"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew on ARM
	"/usr/local/opt/postgresql@*/bin",                    // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",    // Homebrew on Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
	"/usr/local/pgsql/bin",                               // from source
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// Binaries is a directory with the programs of one Postgres version.
type Binaries struct {
	Dir   string
	Major int
}

// Program gives the path of one of the programs.
func (b Binaries) Program(name string) string { return filepath.Join(b.Dir, name) }

// Inspect looks at one directory; it is an error if it lacks the server's programs or they are too old.
func Inspect(ctx context.Context, dir string) (Binaries, error) {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return Binaries{}, fmt.Errorf("look for Postgres in %s: %w", dir, err)
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("ask %s for its version: %w", filepath.Join(dir, "postgres"), err)
	}
	found := versionText.FindSubmatch(out)
	if found == nil {
		return Binaries{}, fmt.Errorf("%s gives its version as %.100q", filepath.Join(dir, "postgres"), out)
	}
	major, err := strconv.Atoi(string(found[1]))
	if err != nil {
		return Binaries{}, fmt.Errorf("read the version of %s: %w", dir, err)
	}
	if major < OldestMajor {
		return Binaries{}, fmt.Errorf("the Postgres in %s is version %d: certctl needs %d or newer", dir, major, OldestMajor)
	}
	return Binaries{Dir: dir, Major: major}, nil
}

// Find gives the supported versions that are installed: that in explicit only, if it is not empty; else the one on
// PATH first, then those in the usual places, newest first. It returns none when there are none.
func Find(ctx context.Context, explicit string) ([]Binaries, error) {
	if explicit != "" {
		b, err := Inspect(ctx, explicit)
		if err != nil {
			return nil, err
		}
		return []Binaries{b}, nil
	}
	var found []Binaries
	for _, pattern := range places {
		dirs, _ := filepath.Glob(pattern) // the only error is a bad pattern
		found = append(found, inspectAll(ctx, dirs)...)
	}
	slices.SortStableFunc(found, func(a, b Binaries) int { return cmp.Compare(b.Major, a.Major) })
	return append(onPath(ctx), found...), nil
}

func onPath(ctx context.Context) []Binaries {
	program, err := exec.LookPath("postgres")
	if err != nil {
		return nil
	}
	if target, err := filepath.EvalSymlinks(program); err == nil {
		program = target // initdb finds its share directory relative to the real place
	}
	return inspectAll(ctx, []string{filepath.Dir(program)})
}

func inspectAll(ctx context.Context, dirs []string) []Binaries {
	var found []Binaries
	for _, dir := range dirs {
		if b, err := Inspect(ctx, dir); err == nil {
			found = append(found, b)
		}
	}
	return found
}

// environ is what the programs of Postgres see: no PG… variable of the caller may move them elsewhere.
func environ() []string {
	env := []string{"LC_ALL=C", "TZ=UTC", "PATH=" + os.Getenv("PATH")}
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

package nginx

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
)

// Bounds of a configuration: nginx itself has none, but an include that includes itself would go on for ever.
const (
	maxFile  = 8 << 20
	maxFiles = 5000
	maxDepth = 32
)

// tree is a configuration with all that it includes.
type tree struct {
	dir   string // what relative paths of files stand in
	main  *source
	files map[string]*source
}

// source is one file of a configuration.
type source struct {
	path       string
	text       string
	directives []directive
	includes   map[int][]*source // by index of the include directive
}

func (s *server) tree() (*tree, error) {
	t := &tree{dir: filepath.Dir(s.build.conf), files: map[string]*source{}}
	var err error
	t.main, err = t.load(s.build.conf, 0)
	if err != nil {
		return nil, errs.New(errs.Conflict, "NGINX_CONFIG_UNREADABLE", "read the nginx configuration: %s", err)
	}
	return t, nil
}

func (t *tree) load(path string, depth int) (*source, error) {
	known, ok := t.files[path]
	if ok {
		return known, nil
	}
	if depth > maxDepth || len(t.files) >= maxFiles {
		return nil, fmt.Errorf("%s: more than %d files, or includes deeper than %d", path, maxFiles, maxDepth)
	}
	text, err := readBounded(path, maxFile)
	if err != nil {
		return nil, err
	}
	src := &source{path: path, text: string(text), includes: map[int][]*source{}}
	t.files[path] = src
	src.directives, err = parse(src.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return src, t.follow(src, depth)
}

// follow loads what a file includes.
func (t *tree) follow(src *source, depth int) error {
	for i, d := range src.directives {
		if !d.is("include") {
			continue
		}
		paths, err := filepath.Glob(t.abs(d.args()[0].value))
		if err != nil {
			return fmt.Errorf("%s: include %q: %w", src.path, d.args()[0].value, err)
		}
		for _, p := range paths {
			child, err := t.load(p, depth+1)
			if err != nil {
				return err
			}
			src.includes[i] = append(src.includes[i], child)
		}
	}
	return nil
}

func (t *tree) abs(path string) string { return against(t.dir, path) }

// pidPath gives the pid file of the main context, or the built one.
func (t *tree) pidPath(b build) string {
	path := b.pid
	for _, src := range t.files {
		for _, d := range src.directives {
			if d.is("pid") && d.depth == 0 {
				path = against(b.prefix, d.args()[0].value)
			}
		}
	}
	return path
}

// logPath gives the error log of the main context, "" when it is no file.
func (t *tree) logPath(b build) string {
	for _, d := range t.main.directives {
		if d.is("error_log") && d.depth == 0 {
			path := d.args()[0].value
			if path == "stderr" || strings.HasPrefix(path, "syslog:") || strings.HasPrefix(path, "memory:") {
				return ""
			}
			return against(b.prefix, path)
		}
	}
	return ""
}

// references makes sure that both files are used, each as what it is.
func (t *tree) references(c config) error {
	certificates, keys := t.values("ssl_certificate"), t.values("ssl_certificate_key")
	err := t.referenced("fullchain_path", c.FullchainPath, certificates)
	if err != nil {
		return err
	}
	return t.referenced("key_path", c.KeyPath, keys)
}

func (t *tree) referenced(field, path string, used map[string]bool) error {
	for u := range used {
		if samePath(t.abs(u), path) {
			return nil
		}
	}
	list := slices.Sorted(maps.Keys(used))
	return errs.New(errs.Conflict, "NGINX_CONFIG_NOT_REFERENCED", "the nginx configuration %s does not reference %s %s; it references %s",
		t.main.path, field, path, enumerate(list))
}

// values collects the first arguments of a directive, wherever it stands.
func (t *tree) values(name string) map[string]bool {
	found := map[string]bool{}
	for _, src := range t.files {
		for _, d := range src.directives {
			if d.is(name) {
				found[d.args()[0].value] = true
			}
		}
	}
	return found
}

// enumerate lists a few paths for a message.
func enumerate(list []string) string {
	switch n := len(list); {
	case n == 0:
		return "none"
	case n > 5:
		return strings.Join(list[:5], ", ") + fmt.Sprintf(" and %d more", n-5)
	default:
		return strings.Join(list, ", ")
	}
}

// samePath tells whether two absolute paths name the same file, also one that does not exist yet.
func samePath(a, b string) bool {
	return filepath.Clean(a) == filepath.Clean(b) || resolve(a) == resolve(b)
}

func resolve(path string) string {
	found, err := filepath.EvalSymlinks(path)
	if err == nil {
		return found
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, filepath.Base(path))
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errors.New(path + " is too long")
	}
	return b, nil
}

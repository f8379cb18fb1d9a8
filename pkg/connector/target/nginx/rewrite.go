package nginx

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// copier writes the copy of a configuration that points at staged files. Only files with something to change are copied;
// the rest is included from where it is.
type copier struct {
	tree   *tree
	dir    string
	staged map[string]string
	copies map[*source]string // "" while unchanged files and those in progress
}

// copyTo writes the copy into dir and gives the path of its main file. nginx takes relative paths from the directory of the
// main file, so dir gets a symbolic link to each neighbour of the real one.
func (t *tree) copyTo(dir string, staged map[string]string) (string, error) {
	c := &copier{tree: t, dir: dir, staged: staged, copies: map[*source]string{}}
	err := c.mirror()
	if err != nil {
		return "", err
	}
	main := filepath.Join(dir, filepath.Base(t.main.path))
	text, _, err := c.rewrite(t.main)
	if err != nil {
		return "", err
	}
	return main, os.WriteFile(main, []byte(text), 0o600)
}

func (c *copier) mirror() error {
	entries, err := os.ReadDir(c.tree.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(c.tree.main.path) {
			continue
		}
		err = os.Symlink(filepath.Join(c.tree.dir, e.Name()), filepath.Join(c.dir, e.Name()))
		if err != nil {
			return err
		}
	}
	return nil
}

// rewrite gives the text of a file with the new paths, and whether anything changed.
func (c *copier) rewrite(src *source) (string, bool, error) {
	var b strings.Builder
	last := 0
	replace := func(from, to int, with string) {
		b.WriteString(src.text[last:from])
		b.WriteString(with)
		last = to
	}
	for i, d := range src.directives {
		if d.is("include") {
			with, changed, err := c.include(src.includes[i])
			if err != nil {
				return "", false, err
			}
			outside := strings.HasPrefix(d.args()[0].value, "../") && with != ""
			if changed || outside {
				replace(d.words[0].start, d.words[len(d.words)-1].end, with)
			}
			continue
		}
		for _, arg := range d.args() {
			path, changed := c.path(d, arg.value)
			if changed {
				replace(arg.start, arg.end, quote(path))
			}
		}
	}
	b.WriteString(src.text[last:])
	return b.String(), last > 0, nil
}

// path gives what an argument becomes: the staged file for a configured one. What is relative to the parent of the
// configuration's directory becomes absolute, because the copy has another parent.
func (c *copier) path(d directive, value string) (string, bool) {
	if !takesFile(d.name()) {
		return "", false
	}
	for path, staged := range c.staged {
		if samePath(c.tree.abs(value), path) {
			return staged, true
		}
	}
	return c.tree.abs(value), strings.HasPrefix(value, "../")
}

func takesFile(name string) bool {
	return strings.HasPrefix(name, "ssl_") || strings.Contains(name, "_ssl_") || name == "auth_basic_user_file"
}

// include gives the directives that include the copies, without the last semicolon.
func (c *copier) include(files []*source) (string, bool, error) {
	list := make([]string, len(files))
	touched := false
	for i, f := range files {
		path, changed, err := c.copy(f)
		if err != nil {
			return "", false, err
		}
		touched = touched || changed
		list[i] = "include " + quote(path)
	}
	return strings.Join(list, ";\n"), touched, nil
}

func (c *copier) copy(src *source) (string, bool, error) {
	path, done := c.copies[src]
	if done {
		return path, path != src.path, nil
	}
	c.copies[src] = src.path
	text, changed, err := c.rewrite(src)
	if err != nil || !changed {
		return src.path, false, err
	}
	path = filepath.Join(c.dir, fmt.Sprintf(".certctl-%d.conf", len(c.copies)))
	c.copies[src] = path
	return path, true, os.WriteFile(path, []byte(text), 0o600)
}

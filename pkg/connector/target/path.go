package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/certctl/certctl/pkg/errs"
)

// maxLinks bounds the symbolic links on one path, as the kernel does.
const maxLinks = 40

// place is where a configured path leads: a directory without any symbolic link on its path, and a name in it that is no
// symbolic link.
type place struct{ dir, name string }

func (p place) String() string { return filepath.Join(p.dir, p.name) }

// resolve follows a path by the rules in the package comment. The name at the end need not exist.
func resolve(path string) (place, error) {
	w := walk{done: "/", left: parts(path)}
	for len(w.left) > 0 {
		err := w.step()
		if err != nil {
			return place{}, refused(path, err)
		}
	}
	if w.info != nil && w.info.IsDir() {
		return place{}, refused(path, errors.New("is a directory"))
	}
	if w.info != nil && !w.info.Mode().IsRegular() {
		return place{}, refused(path, errors.New("is not a regular file"))
	}
	p := place{dir: filepath.Dir(w.done), name: filepath.Base(w.done)}
	return p, refused(path, privateDirectory(p.dir))
}

// walk is a path that is being followed: what is done, what is left, and what stands at the end of what is done.
type walk struct {
	done  string
	left  []string
	info  fs.FileInfo
	links int
}

func (w *walk) step() error {
	next := w.left[0]
	w.left = w.left[1:]
	if next == ".." {
		w.done = filepath.Dir(w.done)
		return nil
	}
	path := filepath.Join(w.done, next)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && len(w.left) == 0 {
		w.done, w.info = path, nil
		return nil
	}
	if err != nil {
		return err
	}
	if !trusted(w.done, info) {
		return errors.New("leads through " + w.done + ", where everybody may put things")
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return w.follow(path, info)
	}
	w.done, w.info = path, info
	return nil
}

func (w *walk) follow(path string, info fs.FileInfo) error {
	w.links++
	if w.links > maxLinks {
		return errors.New("has too many symbolic links")
	}
	if !ours(info) {
		return errors.New("leads through the symbolic link " + path + ", which belongs to another user")
	}
	to, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if filepath.IsAbs(to) {
		w.done = "/"
	}
	w.left = append(parts(to), w.left...)
	return nil
}

func parts(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == filepath.Separator })
}

// trusted tells whether what stands in a directory was put there by someone who may: not in one that everybody may write
// to, unless it is sticky and the entry is ours.
func trusted(dir string, entry fs.FileInfo) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	if info.Mode().Perm()&0o002 == 0 {
		return true
	}
	return info.Mode()&fs.ModeSticky != 0 && ours(entry)
}

// privateDirectory refuses to write a file into a directory that everybody may write to, sticky or not.
func privateDirectory(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return errors.New("stands in " + dir + ", where everybody may write")
	}
	return nil
}

// ours tells whether something belongs to root or to this process's user.
func ours(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
}

func refused(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Conflict, "DIRECTORY_NOT_FOUND", "the directory of %s does not exist", path).Wrap(err)
	default:
		return errs.New(errs.Conflict, "PATH_REFUSED", "%s cannot be used: %s", path, err)
	}
}

// Package datadir gives an agent's data directory to the user that the agent runs as.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// mode is that of the directory: there are private keys in it.
const mode = 0o700

// Owner is a user and a group by number: an image has no table of names. A group of -1 stays as it is.
type Owner struct{ UID, GID int }

// ParseOwner reads UID or UID:GID.
func ParseOwner(text string) (Owner, error) {
	user, group, both := strings.Cut(text, ":")
	uid, err := number(user)
	if err != nil || !both {
		return Owner{uid, -1}, err
	}
	gid, err := number(group)
	return Owner{uid, gid}, err
}

func number(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is no user or group by number: write UID or UID:GID, such as 65532:65532", text)
	}
	return int(n), nil
}

// String writes it as ParseOwner reads it.
func (o Owner) String() string {
	if o.GID < 0 {
		return strconv.Itoa(o.UID)
	}
	return fmt.Sprintf("%d:%d", o.UID, o.GID)
}

// has tells whether a file belongs to the owner.
func (o Owner) has(s *syscall.Stat_t) bool {
	return int(s.Uid) == o.UID && (o.GID < 0 || int(s.Gid) == o.GID)
}

// Report is what was done.
type Report struct {
	Made bool
	// Closed says that the directory had another mode.
	Closed bool
	// Given counts what has another owner now, the directory itself included.
	Given int
}

// Prepare makes a directory if it is missing, and gives it, and what is in it, to the owner; directories get the mode 0700.
// Whoever owns them now is not trusted. So each directory first becomes the caller's own and is closed: from then on nobody
// else can put something in the place of what is looked at. Symbolic links are not followed, and a file with a second name,
// which may be a file from outside, is refused. Where the parent directories belong to root, nothing outside changes.
//
// CAP_CHOWN is all that it needs as root: who owns a directory needs no right to read the directories of others.
func Prepare(dir string, owner Owner) (Report, error) {
	dir = filepath.Clean(dir)
	p := &preparation{owner: owner}
	before, err := p.take(dir)
	if err != nil {
		return p.report, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return p.report, fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = root.Close() }()
	if err := agents(root, dir); err != nil {
		return Report{}, errors.Join(err, root.Lchown(".", int(before.Uid), -1))
	}
	if err := root.Chmod(".", mode); err != nil {
		p.fail("set the mode of %s: %w", dir, err)
	}
	p.content(root, dir)
	p.give(root, ".", dir, before)
	return p.report, errors.Join(p.problems...)
}

// agents fails for a directory of something else, which a misspelt setting may name.
func agents(root *os.Root, dir string) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	if slices.ContainsFunc(entries, isAgents) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != "lost+found" { // that of a file system of its own
			return fmt.Errorf("%s has files and is no agent's directory: name one of its own", dir)
		}
	}
	return nil
}

// isAgents tells what an agent makes first. Links are not followed: /var/lock is one.
func isAgents(e fs.DirEntry) bool {
	return e.Name() == "identity" && e.IsDir() || e.Name() == "lock" && e.Type().IsRegular()
}

// preparation goes on after what it cannot give away, so that no directory is left to the wrong owner.
type preparation struct {
	owner    Owner
	report   Report
	problems []error
}

func (p *preparation) fail(format string, a ...any) {
	p.problems = append(p.problems, fmt.Errorf(format, a...))
}

// take makes the directory the caller's own, and answers what it was before.
func (p *preparation) take(dir string) (*syscall.Stat_t, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the directories above are not ours alone
		return nil, fmt.Errorf("make the directories above: %w", err)
	}
	err := os.Mkdir(dir, mode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	p.report.Made = err == nil
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("look at the directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory (%s): name the directory itself", dir, info.Mode())
	}
	p.report.Closed = info.Mode().Perm() != mode
	before, err := status(info)
	if err != nil {
		return nil, err
	}
	return before, own(before, func(uid int) error { return os.Lchown(dir, uid, -1) })
}

func status(info fs.FileInfo) (*syscall.Stat_t, error) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s: this system does not tell owners", info.Name())
	}
	return s, nil
}

// own gives a directory to the caller.
func own(s *syscall.Stat_t, chown func(uid int) error) error {
	if int(s.Uid) == os.Geteuid() {
		return nil
	}
	if err := chown(os.Geteuid()); err != nil {
		return fmt.Errorf("take the directory: %w; run this as root with CAP_CHOWN", err)
	}
	return nil
}

// content gives away all that is in a directory of the caller's own.
func (p *preparation) content(root *os.Root, path string) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		p.fail("list %s: %w", path, err)
	}
	for _, e := range entries {
		p.entry(root, e.Name(), filepath.Join(path, e.Name()))
	}
}

func (p *preparation) entry(root *os.Root, name, path string) {
	info, err := root.Lstat(name)
	if err != nil {
		p.fail("look at %s: %w", path, err)
		return
	}
	s, err := status(info)
	if err != nil {
		p.fail("look at %s: %w", path, err)
		return
	}
	switch {
	case info.IsDir():
		p.directory(root, name, path, s)
	case s.Nlink > 1 && !p.owner.has(s):
		p.fail("%s has a second name, and may be a file from elsewhere; it was left alone: remove it", path)
		return
	}
	p.give(root, name, path, s)
}

func (p *preparation) directory(root *os.Root, name, path string, s *syscall.Stat_t) {
	if err := own(s, func(uid int) error { return root.Lchown(name, uid, -1) }); err != nil {
		p.fail("%s: %w", path, err)
		return
	}
	if err := root.Chmod(name, mode); err != nil {
		p.fail("set the mode of %s: %w", path, err)
	}
	inner, err := root.OpenRoot(name)
	if err != nil {
		p.fail("open %s: %w", path, err)
		return
	}
	defer func() { _ = inner.Close() }()
	p.content(inner, path)
}

// give changes the owner; before is what it was before the caller took it.
func (p *preparation) give(root *os.Root, name, path string, before *syscall.Stat_t) {
	if err := root.Lchown(name, p.owner.UID, p.owner.GID); err != nil {
		p.fail("give %s to %s: %w", path, p.owner, err)
		return
	}
	if !p.owner.has(before) {
		p.report.Given++
	}
}

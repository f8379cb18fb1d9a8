package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Account is whom Postgres runs as. Postgres refuses to run as root, so root hands it to somebody else.
type Account struct {
	Name string
	uid  uint32
	gid  uint32
	drop bool // false: the account of this process
}

// Unprivileged gives the account for Postgres: this process's own, or for root "postgres" or else "nobody".
func Unprivileged() (Account, error) {
	if os.Geteuid() != 0 {
		return Account{Name: strconv.Itoa(os.Geteuid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID == nil && errGID == nil && uid != 0 {
			return Account{Name: name, uid: uint32(uid), gid: uint32(gid), drop: true}, nil
		}
	}
	return Account{}, errors.New("to run Postgres as root is not possible, and there is no user postgres or nobody to run it as: " +
		"start certctl as an ordinary user, or add a user postgres")
}

// Drops tells whether Postgres runs as somebody else than this process.
func (a Account) Drops() bool { return a.drop }

// UID gives the user id that Postgres runs under.
func (a Account) UID() int {
	if a.drop {
		return int(a.uid)
	}
	return os.Geteuid()
}

// MakeDir makes a private directory that the account owns. Its parent exists.
func (a Account) MakeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return a.Own(path)
}

// Own gives a file or directory to the account.
func (a Account) Own(path string) error {
	if !a.drop {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to user %s: %w", path, a.Name, err)
	}
	return nil
}

// CheckPath tells whether the account can get to path, which is absolute. The error names the first directory on the way that
// shuts it out, and what to do.
func (a Account) CheckPath(path string) error {
	if !a.drop {
		return nil
	}
	shut, err := a.shutOut(path)
	if err != nil || shut == "" {
		return err
	}
	return fmt.Errorf("postgres runs as user %s (it refuses to run as root), and that user may not pass through %s: "+
		"choose a data directory elsewhere (CERTCTL_DATA_DIR=/var/lib/certctl), or open the way (chmod o+x %s), or start certctl as an ordinary user",
		a.Name, shut, shut)
}

func (a Account) shutOut(path string) (string, error) {
	if parent := filepath.Dir(path); parent != path {
		if shut, err := a.shutOut(parent); err != nil || shut != "" {
			return shut, err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("look at the way to the data directory: %w", err)
	}
	if a.mayPass(info) {
		return "", nil
	}
	return path, nil
}

func (a Account) mayPass(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	mode := info.Mode().Perm()
	switch {
	case st.Uid == a.uid:
		return mode&0o100 != 0
	case st.Gid == a.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// Attributes makes the process run as the account, in a session of its own: an interrupt typed at the terminal reaches
// certctl, which then ends Postgres in order.
func (a Account) Attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

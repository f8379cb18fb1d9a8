package target

import (
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// leave stands for an owner or a group that is not changed.
const leave = -1

// attributes are how a file looks from outside.
type attributes struct {
	Mode fs.FileMode `json:"mode"`
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

func attributesOf(info fs.FileInfo) attributes {
	a := attributes{Mode: info.Mode().Perm(), UID: leave, GID: leave}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok {
		a.UID, a.GID = int(stat.Uid), int(stat.Gid)
	}
	return a
}

// wanted gives how a file must look: as configured, else as the old one, else by default. A configured owner alone leaves the
// group, and the other way round.
func wanted(f plan.File, old *attributes) (attributes, error) {
	a := attributes{Mode: f.Content.DefaultMode(), UID: leave, GID: leave}
	if old != nil {
		a = *old
	}
	if f.Mode != 0 {
		a.Mode = f.Mode
	}
	var err error
	if f.Owner != "" {
		a.UID, err = account("owner", f.Owner, lookupUser)
	}
	if err == nil && f.Group != "" {
		a.GID, err = account("group", f.Group, lookupGroup)
	}
	return a, err
}

func lookupUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func lookupGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// account turns a name or a number into a number.
func account(field, name string, lookup func(string) (string, error)) (int, error) {
	n, err := strconv.ParseUint(name, 10, 31)
	if err == nil {
		return int(n), nil
	}
	id, err := lookup(name)
	if err != nil {
		return leave, errs.New(errs.Conflict, "ACCOUNT_NOT_FOUND", "this host has no %s %q", field, name).Wrap(err)
	}
	n, err = strconv.ParseUint(id, 10, 31)
	if err != nil {
		return leave, errs.New(errs.Conflict, "ACCOUNT_NOT_FOUND", "the %s %q has no number", field, name)
	}
	return int(n), nil
}

// match tells whether a file that looks like have needs no change.
func (a attributes) match(have attributes) bool {
	return a.Mode == have.Mode && (a.UID == leave || a.UID == have.UID) && (a.GID == leave || a.GID == have.GID)
}

// apply makes an open file look so. The owner comes first: a change of owner may clear bits of the mode.
func (a attributes) apply(f *os.File, path string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	have := attributesOf(info)
	if !(attributes{Mode: have.Mode, UID: a.UID, GID: a.GID}).match(have) {
		err = f.Chown(a.UID, a.GID)
	}
	if err != nil {
		return errs.New(errs.PermissionDenied, "OWNERSHIP_REFUSED", "cannot give %s to user %d and group %d: the agent runs as user %d without the right to change owners",
			path, a.UID, a.GID, os.Geteuid()).Wrap(err)
	}
	return f.Chmod(a.Mode)
}

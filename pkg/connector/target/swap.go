package target

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// maxExisting bounds a file that may be replaced: a larger one is not a certificate.
const maxExisting = 1 << 20

// image is a file as it was or will be: the digest of its bytes, and how it looks.
type image struct {
	SHA256 string     `json:"sha256"`
	Look   attributes `json:"look"`
}

// swapFile is one file of a deployment, as the journal keeps it. All four names stand in one directory, which is held open: what
// happens to the path meanwhile cannot lead a write elsewhere.
type swapFile struct {
	Path   string       `json:"path"` // as configured
	Kind   plan.Content `json:"content"`
	Dir    string       `json:"dir"`
	Name   string       `json:"name"`
	Staged string       `json:"staged"`
	Backup string       `json:"backup"`
	Old    *image       `json:"old"` // nil when there was no file
	New    image        `json:"new"`

	root *os.Root
	data []byte
}

// locate finds where a planned file goes, what stands there and how the new one must look.
func locate(f plan.File, id string, index int) (*swapFile, error) {
	p, err := resolve(f.Path)
	if err != nil {
		return nil, err
	}
	stem := ".certctl-" + id + "-" + string(rune('a'+index))
	s := &swapFile{Path: f.Path, Kind: f.Content, Dir: p.dir, Name: p.name, Staged: stem + ".new", Backup: stem + ".old"}
	err = s.open()
	if err != nil {
		return nil, err
	}
	s.Old, err = s.read(s.Name)
	if err == nil {
		s.New.Look, err = wanted(f, s.oldLook())
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *swapFile) open() error {
	var err error
	s.root, err = os.OpenRoot(s.Dir)
	if err != nil {
		return errs.New(errs.Conflict, "DIRECTORY_NOT_FOUND", "open directory %s: %s", s.Dir, err)
	}
	return nil
}

func (s *swapFile) close() {
	if s.root != nil {
		_ = s.root.Close()
	}
}

func (s *swapFile) place() string { return filepath.Join(s.Dir, s.Name) }

func (s *swapFile) oldLook() *attributes {
	if s.Old == nil {
		return nil
	}
	return &s.Old.Look
}

// read gives the image of a file in the directory; nil when there is none.
func (s *swapFile) read(name string) (*image, error) {
	data, look, err := s.content(name)
	if err != nil || look == nil {
		return nil, err
	}
	return &image{SHA256: digest(data), Look: *look}, nil
}

func (s *swapFile) content(name string) ([]byte, *attributes, error) {
	info, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxExisting {
		return nil, nil, errs.New(errs.Conflict, "PATH_REFUSED", "%s is no regular file of at most %d bytes", filepath.Join(s.Dir, name), maxExisting)
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxExisting+1))
	look := attributesOf(info)
	return data, &look, err
}

// overwritable refuses to replace what is no PEM and was not written by us: a path with a slip must not cost /etc/passwd.
func (s *swapFile) overwritable() error {
	data, look, err := s.content(s.Name)
	if err != nil || look == nil {
		return err
	}
	defer clear(data)
	if len(bytes.TrimSpace(data)) > 0 && !bytes.Contains(data, []byte("-----BEGIN ")) {
		return errs.New(errs.Conflict, "PATH_REFUSED", "%s exists and is no PEM file; remove it if it is meant to be replaced", s.Path)
	}
	return nil
}

// unchanged tells whether the file is already as it must be.
func (s *swapFile) unchanged() bool {
	return s.Old != nil && s.Old.SHA256 == s.New.SHA256 && s.New.Look.match(s.Old.Look)
}

// stage writes the new file beside the old one, readable by nobody else until it looks as it must.
func (s *swapFile) stage() error {
	err := s.write(s.Staged, s.data, s.New.Look)
	if err != nil {
		return err
	}
	made, err := s.read(s.Staged)
	if err != nil {
		return err
	}
	s.New.Look = made.Look
	return nil
}

func (s *swapFile) write(name string, data []byte, look attributes) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = look.apply(f, s.Path)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// keep holds on to the old file under the backup's name. A hard link keeps the very file, with all that belongs to it, and
// putting it back needs no space on a full disk; where links cannot be made it is a copy.
func (s *swapFile) keep() error {
	if s.Old == nil {
		return nil
	}
	err := s.root.Link(s.Name, s.Backup)
	if err == nil {
		return nil
	}
	data, _, err := s.content(s.Name)
	if err != nil {
		return err
	}
	defer clear(data)
	return s.write(s.Backup, data, s.Old.Look)
}

// restore puts the old file back, or removes the new one where there was none. It may be repeated.
func (s *swapFile) restore() error {
	if s.Old == nil {
		return s.removeNew()
	}
	err := s.root.Rename(s.Backup, s.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now, err := s.read(s.Name)
	if err != nil {
		return err
	}
	if now == nil || now.SHA256 != s.Old.SHA256 {
		return errors.New("the backup of " + s.place() + " is gone")
	}
	return nil
}

// removeNew removes the file only if it is the one that was put there.
func (s *swapFile) removeNew() error {
	now, err := s.read(s.Name)
	if err != nil || now == nil || now.SHA256 != s.New.SHA256 {
		return err
	}
	return s.root.Remove(s.Name)
}

// clean removes what stands beside the file. After a rename onto a hard link of itself the backup is still there.
func (s *swapFile) clean() error {
	return errors.Join(s.remove(s.Staged), s.remove(s.Backup))
}

func (s *swapFile) remove(name string) error {
	err := s.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sync makes renames in the directory last.
func (s *swapFile) sync() error {
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// newID names the files of one deployment so that no two have the same.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand does not fail
	return hex.EncodeToString(b[:])
}

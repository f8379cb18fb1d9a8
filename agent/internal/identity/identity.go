// Package identity keeps who the agent is: the id that it was given and the credential that proves it.
package identity

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	recordFile     = "agent.json"
	credentialFile = "credential"
	// nextFile holds a credential that has not been used yet. Until it has, the old one is kept too: after a crash
	// either may be the one that the server knows.
	nextFile = "credential.next"
	// maxCredential bounds what the server may give as a credential, bytes.
	maxCredential = 256
)

// record is what is not secret.
type record struct {
	InstanceID string `json:"instance_id"`
	AgentID    string `json:"agent_id,omitempty"`
	Name       string `json:"name,omitempty"`
	// Retired is set for good.
	Retired bool `json:"retired,omitempty"`
}

// Store is the identity on disk. It is safe for concurrent use.
type Store struct {
	dir string

	mu      sync.Mutex
	record  record
	current secretbox.Secret
	next    secretbox.Secret
}

// Open reads the identity in a directory, and makes a random instance id on the first start.
func Open(dir string) (*Store, error) {
	if err := disk.PrivateDir(dir); err != nil {
		return nil, err
	}
	if err := disk.Sweep(dir); err != nil {
		return nil, err
	}
	s := &Store{dir: dir}
	if err := s.readRecord(); err != nil {
		return nil, err
	}
	var err error
	if s.current, err = s.readSecret(credentialFile); err != nil {
		return nil, err
	}
	if s.next, err = s.readSecret(nextFile); err != nil {
		return nil, err
	}
	return s, nil
}

// Exists tells whether there is an identity with a credential in a directory. It changes nothing there.
func Exists(dir string) (bool, error) {
	s := &Store{dir: dir}
	for _, name := range []string{credentialFile, nextFile} {
		c, err := s.readSecret(name)
		if err != nil || !c.IsZero() {
			return err == nil, err
		}
	}
	return false, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) readRecord() error {
	b, err := os.ReadFile(s.path(recordFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.record.InstanceID = rand.Text()
		return s.saveRecord()
	case err != nil:
		return fmt.Errorf("read identity: %w", err)
	}
	if err := json.Unmarshal(b, &s.record); err != nil {
		return fmt.Errorf("read identity %s: %w", s.path(recordFile), err)
	}
	return nil
}

func (s *Store) readSecret(name string) (secretbox.Secret, error) {
	b, err := os.ReadFile(s.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return secretbox.Secret{}, fmt.Errorf("read credential: %w", err)
	}
	return secretbox.NewSecret(strings.TrimSpace(string(b))), nil
}

func (s *Store) saveRecord() error {
	b, err := json.MarshalIndent(s.record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	return disk.Write(s.path(recordFile), append(b, '\n'), 0o600)
}

func (s *Store) saveSecret(name string, c secretbox.Secret) error {
	if v := c.Reveal(); v == "" || len(v) > maxCredential || strings.ContainsFunc(v, unprintable) {
		return errors.New("the server gave a credential that cannot be one")
	}
	return disk.Write(s.path(name), []byte(c.Reveal()), 0o600)
}

// unprintable characters cannot travel in a header.
func unprintable(r rune) bool { return r <= ' ' || r >= 0x7f }

// InstanceID tells this installation from others; it stays for its life.
func (s *Store) InstanceID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.InstanceID
}

// AgentID is the id that the server gave; empty before the enrolment.
func (s *Store) AgentID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.AgentID
}

// Retired tells whether the server has retired this agent.
func (s *Store) Retired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.Retired
}

// Enrolled tells whether there is a credential.
func (s *Store) Enrolled() bool { return !s.Credential().IsZero() }

// Credential is the newest credential: one that was just given out is used from the next call on.
func (s *Store) Credential() secretbox.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest()
}

func (s *Store) newest() secretbox.Secret {
	if !s.next.IsZero() {
		return s.next
	}
	return s.current
}

// Enrol stores the outcome of an enrolment.
func (s *Store) Enrol(agentID, name string, credential secretbox.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.AgentID, s.record.Name = agentID, name
	if err := s.saveRecord(); err != nil {
		return err
	}
	if err := s.saveSecret(credentialFile, credential); err != nil {
		return err
	}
	s.current, s.next = credential, secretbox.Secret{}
	if err := disk.Remove(s.path(nextFile)); err != nil {
		return fmt.Errorf("forget the old credential: %w", err)
	}
	return disk.Sync(s.dir)
}

// Offer stores a new credential beside the old one. It is used from now on; Accept or Refuse decides.
func (s *Store) Offer(credential secretbox.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.saveSecret(nextFile, credential); err != nil {
		return err
	}
	s.next = credential
	return nil
}

// Offered tells whether a new credential waits for its first use.
func (s *Store) Offered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.next.IsZero()
}

// Accept makes the offered credential the only one, after the server has taken it. It does nothing when another one is
// offered meanwhile, or none.
func (s *Store) Accept(credential secretbox.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next.IsZero() || !s.next.Equal(credential) {
		return nil
	}
	if err := os.Rename(s.path(nextFile), s.path(credentialFile)); err != nil {
		return fmt.Errorf("accept the new credential: %w", err)
	}
	s.current, s.next = s.next, secretbox.Secret{}
	return disk.Sync(s.dir)
}

// Refuse notes that the server does not take a credential: one that was offered is dropped, and the old one is used again.
// It answers whether there is now another one to try. That is so, too, when the credential was replaced since it was sent:
// a stream that was opened with the old one ends in this way after a rotation.
func (s *Store) Refuse(credential secretbox.Secret) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.newest().Equal(credential) {
		return true, nil
	}
	if s.next.IsZero() {
		return false, nil
	}
	if err := disk.Remove(s.path(nextFile)); err != nil {
		return false, fmt.Errorf("drop the new credential: %w", err)
	}
	s.next = secretbox.Secret{}
	return !s.current.IsZero(), disk.Sync(s.dir)
}

// Retire drops the credentials of an agent that the server has retired, and remembers it.
func (s *Store) Retire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.next = secretbox.Secret{}, secretbox.Secret{}
	s.record.Retired = true
	if err := s.saveRecord(); err != nil {
		return err
	}
	if err := disk.Remove(s.path(credentialFile), s.path(nextFile)); err != nil {
		return fmt.Errorf("forget the credential: %w", err)
	}
	return disk.Sync(s.dir)
}

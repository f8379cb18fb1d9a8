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
	"sync"

	"github.com/certctl/certctl/agent/internal/disk"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	recordFile     = "agent.json"
	credentialFile = "credential"
	// nextFile holds a credential that has not been used yet. Until it has, the old one is kept too: after a crash
	// either may be the one that the server knows.
	nextFile = "credential.next"
)

// record is what is not secret.
type record struct {
	InstanceID string `json:"instance_id"`
	AgentID    string `json:"agent_id,omitempty"`
	Name       string `json:"name,omitempty"`
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
	s := &Store{dir: dir}
	b, err := os.ReadFile(s.path(recordFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.record.InstanceID = rand.Text()
		if err := s.saveRecord(); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read identity: %w", err)
	default:
		if err := json.Unmarshal(b, &s.record); err != nil {
			return nil, fmt.Errorf("read identity %s: %w", s.path(recordFile), err)
		}
	}
	if s.current, err = s.readSecret(credentialFile); err != nil {
		return nil, err
	}
	if s.next, err = s.readSecret(nextFile); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) readSecret(name string) (secretbox.Secret, error) {
	b, err := os.ReadFile(s.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return secretbox.Secret{}, fmt.Errorf("read credential: %w", err)
	}
	return secretbox.NewSecret(string(b)), nil
}

func (s *Store) saveRecord() error {
	b, err := json.MarshalIndent(s.record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	return disk.Write(s.path(recordFile), append(b, '\n'), 0o600)
}

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

// Enrolled tells whether there is a credential.
func (s *Store) Enrolled() bool { return !s.Credential().IsZero() }

// Credential is the newest credential: one that was just given out is used from the next call on.
func (s *Store) Credential() secretbox.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.next.IsZero() {
		return s.next
	}
	return s.current
}

// Enrol stores the outcome of an enrolment.
func (s *Store) Enrol(agentID, name string, credential secretbox.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := disk.Write(s.path(credentialFile), []byte(credential.Reveal()), 0o600); err != nil {
		return err
	}
	if err := disk.Remove(s.path(nextFile)); err != nil {
		return fmt.Errorf("forget the old credential: %w", err)
	}
	s.current, s.next = credential, secretbox.Secret{}
	s.record.AgentID, s.record.Name = agentID, name
	return s.saveRecord()
}

// Offer stores a new credential beside the old one. It is used from now on; Accept or Refuse decides.
func (s *Store) Offer(credential secretbox.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := disk.Write(s.path(nextFile), []byte(credential.Reveal()), 0o600); err != nil {
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

// Accept makes the offered credential the only one, after the server has taken it.
func (s *Store) Accept() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next.IsZero() {
		return nil
	}
	if err := os.Rename(s.path(nextFile), s.path(credentialFile)); err != nil {
		return fmt.Errorf("accept the new credential: %w", err)
	}
	s.current, s.next = s.next, secretbox.Secret{}
	return disk.Sync(s.dir)
}

// Refuse goes back to the old credential, after the server has refused the offered one. It answers false when there was
// none to go back from.
func (s *Store) Refuse() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next.IsZero() {
		return false, nil
	}
	if err := disk.Remove(s.path(nextFile)); err != nil {
		return false, fmt.Errorf("drop the new credential: %w", err)
	}
	s.next = secretbox.Secret{}
	return true, disk.Sync(s.dir)
}

// Forget drops the credentials of an agent that the server has retired or does not know any more.
func (s *Store) Forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.next = secretbox.Secret{}, secretbox.Secret{}
	s.record.AgentID = ""
	if err := disk.Remove(s.path(credentialFile), s.path(nextFile)); err != nil {
		return fmt.Errorf("forget the credential: %w", err)
	}
	return s.saveRecord()
}

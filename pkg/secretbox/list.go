package secretbox

import (
	"fmt"
	"strings"
)

// MinSecret is the least length, in bytes, of a secret that keys derive from or that somebody is let in with.
const MinSecret = 16

// List reads a secret that may be several with commas between: the first is used, all are accepted, so that one can be
// replaced by another while everything runs. Space around an item of several does not count, and one that is there already
// is left out; a secret without a comma is taken as it stands. Each has at least so many bytes. Errors tell an item by its
// place and show nothing of it.
func (s Secret) List(least int) ([]Secret, error) {
	items := s.items()
	list := make([]Secret, 0, len(items))
	for i, item := range items {
		what := "it"
		if len(items) > 1 {
			what = fmt.Sprintf("item %d of %d", i+1, len(items))
		}
		switch {
		case item == "" && len(items) > 1:
			return nil, fmt.Errorf("%s is empty: there is a comma too many", what)
		case len(item) < least:
			return nil, fmt.Errorf("%s has %d bytes: want at least %d", what, len(item), least)
		}
		if secret := NewSecret(item); !secret.In(list) {
			list = append(list, secret)
		}
	}
	return list, nil
}

// InternalList reads the secret by which the services of an installation know each other.
func (s Secret) InternalList() ([]Secret, error) {
	list, err := s.List(MinSecret)
	if err != nil {
		return nil, fmt.Errorf("internal secret: %w", err)
	}
	return list, nil
}

// First is the item of a list that is used.
func (s Secret) First() Secret { return NewSecret(s.items()[0]) }

func (s Secret) items() []string {
	items := strings.Split(s.Reveal(), ",")
	if len(items) == 1 {
		return items
	}
	for i, item := range items {
		items[i] = strings.TrimSpace(item)
	}
	return items
}

// In tells whether the secret is one of a list, in a time that does not tell which.
func (s Secret) In(list []Secret) bool {
	found := false
	for _, item := range list {
		if s.Equal(item) {
			found = true
		}
	}
	return found
}

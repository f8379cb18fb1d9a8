package secretbox

import (
	"fmt"
	"strings"
)

// List reads a secret that may be several with commas between: the first is used, all are accepted, so that one can be
// replaced by another while everything runs. Space around an item does not count. Each has at least so many bytes. Errors
// tell an item by its place and show nothing of it.
func (s Secret) List(least int) ([]Secret, error) {
	items := strings.Split(s.Reveal(), ",")
	list := make([]Secret, 0, len(items))
	for i, item := range items {
		item = strings.TrimSpace(item)
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
		list = append(list, NewSecret(item))
	}
	return list, nil
}

// First is the item of a list that is used.
func (s Secret) First() Secret {
	first, _, _ := strings.Cut(s.Reveal(), ",")
	return NewSecret(strings.TrimSpace(first))
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

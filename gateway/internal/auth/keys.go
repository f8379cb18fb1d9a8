// Package auth knows the API keys of users, and decides before anything else happens whether a request may go on.
package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

// MinKey is the least length of an API key, in bytes.
const MinKey = 16

var (
	keyName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)
	printable = regexp.MustCompile(`^[!-~]+$`)
)

// Keys are the API keys that work. Only their hashes are kept.
type Keys struct{ keys []key }

type key struct {
	caller rpcctx.Caller
	hash   [sha256.Size]byte
}

// Parse reads a comma-separated list. An entry is an admin key, which is named "admin-<n>" by its place from 1, or
// "name:role:key". A name may be there twice with one role, so that its key can be changed without downtime. Errors name
// the place of an entry and nothing of its content.
func Parse(secret secretbox.Secret) (Keys, error) {
	var keys Keys
	for i, entry := range strings.Split(secret.Reveal(), ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		k, err := parseEntry(i+1, entry)
		if err == nil {
			err = keys.add(k)
		}
		if err != nil {
			return Keys{}, fmt.Errorf("API key %d: %w", i+1, err)
		}
	}
	if len(keys.keys) == 0 {
		return Keys{}, errors.New("there is no API key: set CERTCTL_AUTH_SECRET")
	}
	return keys, nil
}

func parseEntry(place int, entry string) (key, error) {
	name, role, text := fmt.Sprintf("admin-%d", place), rpcctx.RoleAdmin, entry
	if strings.Contains(entry, ":") {
		parts := strings.SplitN(entry, ":", 3)
		if len(parts) != 3 || !userRole(rpcctx.Role(parts[1])) {
			return key{}, errors.New("want a key without colons, or name:role:key with the role admin, operator, viewer or auditor")
		}
		name, role, text = parts[0], rpcctx.Role(parts[1]), parts[2]
	}
	if !keyName.MatchString(name) {
		return key{}, errors.New("the name has 1 to 64 letters, digits, '.', '_', '@' or '-', and begins with a letter or a digit")
	}
	if len(text) < MinKey {
		return key{}, fmt.Errorf("the key has %d bytes: want at least %d", len(text), MinKey)
	}
	if !printable.MatchString(text) {
		return key{}, errors.New("the key has characters that do not fit in a header")
	}
	caller := rpcctx.Caller{Type: rpcctx.User, ID: name, Role: role}
	return key{caller: caller, hash: sha256.Sum256([]byte(text))}, nil
}

func userRole(r rpcctx.Role) bool {
	switch r {
	case rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor:
		return true
	case rpcctx.RoleNone, rpcctx.RoleAgent, rpcctx.RolePeer:
		return false
	default:
		return false
	}
}

func (k *Keys) add(n key) error {
	for _, o := range k.keys {
		if o.hash == n.hash {
			return errors.New("the same key is there twice")
		}
		if o.caller.ID == n.caller.ID && o.caller.Role != n.caller.Role {
			return fmt.Errorf("the name %s is there with another role", n.caller.ID)
		}
	}
	k.keys = append(k.keys, n)
	return nil
}

// Lookup finds whose key it is. It takes the same time whichever key it is, if any.
func (k Keys) Lookup(token string) (rpcctx.Caller, bool) {
	hash := sha256.Sum256([]byte(token))
	found := -1
	for i := range k.keys {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], k.keys[i].hash[:]), i, found)
	}
	if found < 0 {
		return rpcctx.Caller{}, false
	}
	return k.keys[found].caller, true
}

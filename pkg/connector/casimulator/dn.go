package casimulator

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// dnAttribute is one attribute of a distinguished name, its type in upper case.
type dnAttribute struct{ Type, Value string }

// dnTypes are the attribute types that may stand in a distinguished name: those of RFC 4514, section 3, and further
// ones that CAs use.
func dnTypes() []string {
	return []string{"CN", "SERIALNUMBER", "C", "L", "ST", "STREET", "O", "OU", "DC", "UID", "EMAIL", "EMAILADDRESS", "POSTALCODE", "GIVENNAME", "SN"}
}

// parseDN reads a distinguished name in the string form of RFC 4514.
func parseDN(s string) ([]dnAttribute, error) {
	var name []dnAttribute
	for len(s) > 0 {
		typ, rest, found := strings.Cut(s, "=")
		typ = strings.ToUpper(strings.TrimSpace(typ))
		if !found || !slices.Contains(dnTypes(), typ) {
			return nil, fmt.Errorf("no known attribute type at %q", s)
		}
		value, after, err := dnValue(rest)
		if err != nil {
			return nil, err
		}
		if value == "" {
			return nil, fmt.Errorf("attribute %s is empty", typ)
		}
		name = append(name, dnAttribute{typ, value})
		s = after
	}
	return name, nil
}

// dnValue reads one value up to the next unescaped separator.
func dnValue(s string) (value, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case ',', '+', ';':
			return strings.TrimSpace(b.String()), s[i+1:], nil
		case '\\':
			n, err := unescape(&b, s[i+1:])
			if err != nil {
				return "", "", err
			}
			i += n
		default:
			b.WriteByte(s[i])
		}
	}
	return strings.TrimSpace(b.String()), "", nil
}

// unescape writes the character that the text after a backslash stands for, and gives how many bytes of text it took.
func unescape(b *strings.Builder, s string) (int, error) {
	if len(s) >= 2 {
		if raw, err := hex.DecodeString(s[:2]); err == nil {
			b.Write(raw)
			return 2, nil
		}
	}
	if s == "" {
		return 0, errors.New("a distinguished name ends in a backslash")
	}
	b.WriteByte(s[0])
	return 1, nil
}

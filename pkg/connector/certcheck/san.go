package certcheck

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Tags of GeneralName (RFC 5280, section 4.2.1.6).
const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

// generalNames says what the tags are called that certctl does not issue.
var generalNames = map[uint8]string{
	0: "otherName", 3: "x400Address", 4: "directoryName", 5: "ediPartyName", 8: "registeredID",
}

var (
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidEmailAddress     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
)

// san is one subject alternative name in canonical form.
type san struct{ kind, value string }

func (s san) String() string { return s.kind + " " + s.value }

type sanSet []san

// sans gives the alternative names as one set.
func (n Names) sans() sanSet {
	out := make(sanSet, 0, n.Len())
	add := func(kind string, values []string) {
		for _, v := range values {
			out = append(out, san{kind, v})
		}
	}
	add("DNS", n.DNSNames)
	add("IP", n.IPStrings())
	add("email", n.EmailAddresses)
	add("URI", n.URIs)
	return out
}

// compare gives what is in s and not in want, and the other way round.
func (s sanSet) compare(want sanSet) (extra, missing []san) {
	return minus(s, want), minus(want, s)
}

func minus(a, b sanSet) []san {
	return slices.DeleteFunc(slices.Clone(a), func(x san) bool { return slices.Contains(b, x) })
}

// parseSANs reads the alternative names among extensions. It reads the bytes itself because crypto/x509 skips
// the kinds of names that it does not know, and a name that nobody looked at must not get into a certificate.
func parseSANs(exts []pkix.Extension) (sanSet, error) {
	der, err := extension(exts, oidSAN)
	if err != nil || der == nil {
		return nil, err
	}
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("its subject alternative names are not encoded as RFC 5280 says")
	}
	var out sanSet
	for !seq.Empty() {
		if len(out) == MaxNames {
			return nil, fmt.Errorf("it has more than %d subject alternative names", MaxNames)
		}
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !seq.ReadAnyASN1(&value, &tag) {
			return nil, errors.New("its subject alternative names are not encoded as RFC 5280 says")
		}
		s, err := parseGeneralName(tag, value)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// extension gives the value of the one extension with this id; nil when there is none.
func extension(exts []pkix.Extension, id asn1.ObjectIdentifier) ([]byte, error) {
	var found []byte
	for _, e := range exts {
		if !e.Id.Equal(id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("it has extension %s twice", id)
		}
		found = e.Value
	}
	return found, nil
}

func parseGeneralName(tag cbasn1.Tag, value []byte) (san, error) {
	switch tag {
	case cbasn1.Tag(tagDNS).ContextSpecific():
		d, err := parseDNSName(string(value))
		return san{"DNS", d}, wrapName("DNS", err)
	case cbasn1.Tag(tagEmail).ContextSpecific():
		e, err := parseEmail(string(value))
		return san{"email", e}, wrapName("email", err)
	case cbasn1.Tag(tagURI).ContextSpecific():
		u, err := parseURI(string(value))
		return san{"URI", u}, wrapName("URI", err)
	case cbasn1.Tag(tagIP).ContextSpecific():
		return parseIPBytes(value)
	default:
		return san{}, fmt.Errorf("it has a subject alternative name of a kind that is not issued (%s)", kindOf(tag))
	}
}

func kindOf(tag cbasn1.Tag) string {
	if kind, ok := generalNames[uint8(tag)&^0xa0]; ok {
		return kind
	}
	return fmt.Sprintf("tag %d", uint8(tag))
}

func parseIPBytes(value []byte) (san, error) {
	ip, ok := netip.AddrFromSlice(value)
	if !ok {
		return san{}, fmt.Errorf("it has an IP address of %d bytes", len(value))
	}
	ip, err := usableIP(ip.Unmap())
	return san{"IP", ip.String()}, wrapName("IP", err)
}

func wrapName(kind string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s name: %w", kind, err)
}

// subjectNames gives what a subject says that names a host or a mailbox: common names and mail addresses.
func subjectNames(subject pkix.Name) []string {
	var out []string
	for _, a := range subject.Names {
		if !a.Type.Equal(oidCommonName) && !a.Type.Equal(oidEmailAddress) {
			continue
		}
		s, ok := a.Value.(string)
		if !ok {
			s = fmt.Sprint(a.Value)
		}
		out = append(out, s)
	}
	return out
}

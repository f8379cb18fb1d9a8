package globalsign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// policy is the part of the answer of GET /validationpolicy that decides what is sent. All of it may be missing or be of
// another shape than is known: what cannot be read is not decided here, and the CA says no to what it does not want.
type policy struct {
	Validity struct {
		SecondsMin   int64 `json:"secondsmin"`
		SecondsMax   int64 `json:"secondsmax"`
		NegativeSkew int64 `json:"not_before_negative_skew"`
		IssuerExpiry int64 `json:"issuer_expiry"`
	}
	subjectKnown       bool // there is a policy for the subject: what it does not name is forbidden
	CommonName         stringPolicy
	Organization       stringPolicy
	OrganizationalUnit listPolicy
	Country            stringPolicy
	State              stringPolicy
	Locality           stringPolicy
	StreetAddress      stringPolicy

	DNSNames    listPolicy
	IPAddresses listPolicy
	Emails      listPolicy
	URIs        listPolicy

	ExtKeyUsages listPolicy

	SignatureAlgorithm algorithmPolicy
	HashAlgorithm      algorithmPolicy

	KeyType        string
	AllowedLengths []int
	KeyFormat      string
	KeySignature   presence
}

// presence says whether a field may or has to be sent.
type presence string

// The values of presence.
const (
	required  presence = "REQUIRED"
	static    presence = "STATIC"
	forbidden presence = "FORBIDDEN"
)

// The values of policy.KeyFormat and policy.KeyType.
const (
	formatPKCS8  = "PKCS8"
	formatPKCS10 = "PKCS10"
	keyRSA       = "RSA"
	keyECDSA     = "ECDSA"
)

// stringPolicy is that of a field with one value. Format is the value itself where it is static, else an expression.
type stringPolicy struct {
	Presence presence `json:"presence"`
	Format   string   `json:"format"`
}

// send tells whether a value has a place in the request: the CA puts static ones in by itself.
func (p stringPolicy) send() bool { return p.Presence != static && p.Presence != forbidden }

// listPolicy is that of a field with many values.
type listPolicy struct {
	Static   bool     `json:"static"`
	List     []string `json:"list"`
	MaxCount int      `json:"maxcount"`

	known bool
}

// UnmarshalJSON notes that there is a policy.
func (p *listPolicy) UnmarshalJSON(b []byte) error {
	type plain listPolicy
	if err := json.Unmarshal(b, (*plain)(p)); err != nil {
		return err
	}
	p.known = string(b) != "null"
	return nil
}

// algorithmPolicy is that of an algorithm of the CA's signature.
type algorithmPolicy struct {
	Presence presence `json:"presence"`
	List     []string `json:"list"`
}

// choose gives the algorithm to ask for: one only where the CA wants it named, of those the preferred one if it is there.
func (p algorithmPolicy) choose(preferred string) string {
	if p.Presence != required || len(p.List) == 0 {
		return ""
	}
	if slices.Contains(p.List, preferred) {
		return preferred
	}
	return p.List[0]
}

// parsePolicy reads a validation policy member by member, so that one of a shape that is not known spoils no other.
func parsePolicy(raw json.RawMessage) (policy, error) {
	var p policy
	top, err := members(raw)
	if err != nil {
		return policy{}, err
	}
	read(top["validity"], &p.Validity)
	p.readSubject(top["subject_dn"])
	p.readNames(top["san"])
	if ekus, err := members(top["extended_key_usages"]); err == nil {
		read(ekus["ekus"], &p.ExtKeyUsages)
	}
	if s, err := members(top["signature"]); err == nil {
		read(s["algorithm"], &p.SignatureAlgorithm)
		read(s["hash_algorithm"], &p.HashAlgorithm)
	}
	if k, err := members(top["public_key"]); err == nil {
		read(k["key_type"], &p.KeyType)
		read(k["allowed_lengths"], &p.AllowedLengths)
		read(k["key_format"], &p.KeyFormat)
	}
	read(top["public_key_signature"], &p.KeySignature)
	return p, nil
}

func (p *policy) readSubject(raw json.RawMessage) {
	m, err := members(raw)
	if err != nil {
		return
	}
	p.subjectKnown = m != nil
	read(m["common_name"], &p.CommonName)
	read(m["organization"], &p.Organization)
	read(m["organizational_unit"], &p.OrganizationalUnit)
	read(m["country"], &p.Country)
	read(m["state"], &p.State)
	read(m["locality"], &p.Locality)
	read(m["street_address"], &p.StreetAddress)
}

func (p *policy) readNames(raw json.RawMessage) {
	m, err := members(raw)
	if err != nil {
		return
	}
	read(m["dns_names"], &p.DNSNames)
	read(m["ip_addresses"], &p.IPAddresses)
	read(m["emails"], &p.Emails)
	read(m["uris"], &p.URIs)
}

func members(raw json.RawMessage) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("read validation policy: %w", err)
	}
	return m, nil
}

// read leaves into as it is where raw is missing or of another shape.
func read[T any](raw json.RawMessage, into *T) {
	var v T
	if len(raw) > 0 && json.Unmarshal(raw, &v) == nil {
		*into = v
	}
}

// check holds a key against the policy, so that one that the CA would refuse costs no call.
func (p policy) check(key crypto.PublicKey) error {
	if p.KeySignature == required && p.KeyFormat != formatPKCS10 {
		return issuer.Misconfigured("KEY_FORMAT_NOT_SUPPORTED", "the validation policy of the account wants the public key signed by its "+
			"private key, which never leaves its host: have GlobalSign set the policy's key format to PKCS10")
	}
	if p.KeyFormat != "" && p.KeyFormat != formatPKCS8 && p.KeyFormat != formatPKCS10 {
		return issuer.Misconfigured("KEY_FORMAT_NOT_SUPPORTED", "the validation policy of the account wants keys as %q: known are PKCS8 and PKCS10",
			caclient.Clean(p.KeyFormat))
	}
	kind, bits := keyKind(key)
	if kind == "" || p.KeyType != "" && !strings.EqualFold(p.KeyType, kind) {
		return issuer.Permanent("KEY_NOT_SUPPORTED", "the validation policy of the account allows %s keys: the key is %s",
			orElse(p.KeyType, "RSA or ECDSA"), orElse(kind, "of another kind"))
	}
	if len(p.AllowedLengths) > 0 && !slices.Contains(p.AllowedLengths, bits) {
		return issuer.Permanent("KEY_NOT_SUPPORTED", "the validation policy of the account allows keys of %v bits: the key has %d", p.AllowedLengths, bits)
	}
	return nil
}

// keyKind gives the policy's name for the kind of a key, and its size.
func keyKind(key crypto.PublicKey) (kind string, bits int) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return keyRSA, k.N.BitLen()
	case *ecdsa.PublicKey:
		return keyECDSA, k.Curve.Params().BitSize
	}
	return "", 0
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

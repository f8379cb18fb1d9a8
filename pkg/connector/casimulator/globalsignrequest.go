package casimulator

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"time"
)

// globalSignRequest is the body of POST /certificates. HVCA takes no names from a CSR: what shall be certified stands
// here.
type globalSignRequest struct {
	Validity            *globalSignValidity  `json:"validity"`
	SubjectDN           globalSignSubject    `json:"subject_dn"`
	SAN                 globalSignSAN        `json:"san"`
	ExtendedKeyUsages   []string             `json:"extended_key_usages"`
	SubjectDA           map[string]any       `json:"subject_da"`
	QualifiedStatements map[string]any       `json:"qualified_statements"`
	MSExtensionTemplate map[string]any       `json:"ms_extension_template"`
	CustomExtensions    map[string]string    `json:"custom_extensions"`
	Signature           globalSignAlgorithms `json:"signature"`
	PublicKey           string               `json:"public_key"`
	PublicKeySignature  string               `json:"public_key_signature"`
}

// globalSignValidity is in seconds since 1970. A NotAfter of 0 is the longest that the policy allows.
type globalSignValidity struct {
	NotBefore int64 `json:"not_before"`
	NotAfter  int64 `json:"not_after"`
}

type globalSignSubject struct {
	CommonName         string          `json:"common_name"`
	Organization       string          `json:"organization"`
	OrganizationalUnit []string        `json:"organizational_unit"`
	Country            string          `json:"country"`
	State              string          `json:"state"`
	Locality           string          `json:"locality"`
	StreetAddress      string          `json:"street_address"`
	SerialNumber       string          `json:"serial_number"`
	Email              string          `json:"email"`
	JOILocality        string          `json:"jurisdiction_of_incorporation_locality_name"`
	JOIState           string          `json:"jurisdiction_of_incorporation_state_or_province_name"`
	JOICountry         string          `json:"jurisdiction_of_incorporation_country_name"`
	BusinessCategory   string          `json:"business_category"`
	ExtraAttributes    json.RawMessage `json:"extra_attributes"`
}

type globalSignSAN struct {
	DNSNames    []string         `json:"dns_names"`
	Emails      []string         `json:"emails"`
	IPAddresses []string         `json:"ip_addresses"`
	URIs        []string         `json:"uris"`
	OtherNames  []globalSignPair `json:"other_names"`
}

type globalSignPair struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type globalSignAlgorithms struct {
	Algorithm     string `json:"algorithm"`
	HashAlgorithm string `json:"hash_algorithm"`
}

// globalSignKey is the subject's key as it arrived: a CSR or a bare public key, in DER.
type globalSignKey struct{ csr, public []byte }

// check holds the request against the policy. It gives the key and the validity, which mean something only when there
// is nothing to complain about.
func (g *globalSignRequest) check(p GlobalSignPolicy, now time.Time) (key globalSignKey, notBefore, notAfter time.Time, c complaints) {
	c = complaints{}
	notBefore, notAfter = p.Validity.window(g.Validity, now, c)
	g.SubjectDN.check(p.SubjectDN, c)
	g.SAN.check(p.SAN, c)
	c.checkList("extended_key_usages", g.ExtendedKeyUsages, &p.ExtendedKeyUsages.EKUs)
	c.checkChoice("signature.algorithm", g.Signature.Algorithm, p.Signature.Algorithm)
	c.checkChoice("signature.hash_algorithm", g.Signature.HashAlgorithm, p.Signature.HashAlgorithm)
	for oid := range g.CustomExtensions {
		if _, ok := p.CustomExtensions[oid]; !ok {
			c.add("custom_extensions."+oid, "forbidden by the validation policy")
		}
	}
	for field, value := range map[string]map[string]any{
		"subject_da": g.SubjectDA, "qualified_statements": g.QualifiedStatements, "ms_extension_template": g.MSExtensionTemplate,
	} {
		if len(value) > 0 {
			c.add(field, "forbidden by the validation policy")
		}
	}
	if g.SubjectDN.CommonName == "" && g.SAN.empty() {
		c.add("san", "a certificate needs a common name or a subject alternative name")
	}
	key = checkGlobalSignKey(g.PublicKey, g.PublicKeySignature, p, c)
	return key, notBefore, notAfter, c
}

func (s globalSignSubject) check(p GlobalSignSubjectPolicy, c complaints) {
	c.checkString("subject_dn.common_name", s.CommonName, p.CommonName)
	c.checkString("subject_dn.organization", s.Organization, p.Organization)
	c.checkList("subject_dn.organizational_unit", s.OrganizationalUnit, p.OrganizationalUnit)
	c.checkString("subject_dn.country", s.Country, p.Country)
	c.checkString("subject_dn.state", s.State, p.State)
	c.checkString("subject_dn.locality", s.Locality, p.Locality)
	c.checkString("subject_dn.street_address", s.StreetAddress, p.StreetAddress)
	c.checkString("subject_dn.email", s.Email, p.Email)
	c.checkString("subject_dn.serial_number", s.SerialNumber, p.SerialNumber)
	c.checkString("subject_dn.jurisdiction_of_incorporation_locality_name", s.JOILocality, nil)
	c.checkString("subject_dn.jurisdiction_of_incorporation_state_or_province_name", s.JOIState, nil)
	c.checkString("subject_dn.jurisdiction_of_incorporation_country_name", s.JOICountry, nil)
	c.checkString("subject_dn.business_category", s.BusinessCategory, nil)
	c.checkString("subject_dn.extra_attributes", string(s.ExtraAttributes), nil)
}

func (s globalSignSAN) empty() bool {
	return len(s.DNSNames)+len(s.IPAddresses)+len(s.Emails)+len(s.URIs)+len(s.OtherNames) == 0
}

func (s globalSignSAN) check(p GlobalSignSANPolicy, c complaints) {
	c.checkList("san.dns_names", s.DNSNames, p.DNSNames)
	c.checkList("san.emails", s.Emails, p.Emails)
	c.checkList("san.ip_addresses", s.IPAddresses, p.IPAddresses)
	c.checkList("san.uris", s.URIs, p.URIs)
	for _, ip := range s.IPAddresses {
		if net.ParseIP(ip) == nil {
			c.add("san.ip_addresses", "%q is not an IP address", ip)
		}
	}
	for _, n := range s.OtherNames {
		if _, ok := p.OtherNames[n.Type]; !ok {
			c.add("san.other_names", "forbidden by the validation policy")
		}
	}
}

// checkGlobalSignKey reads public_key, which the policy wants as a CSR (PKCS10) or as a bare key (PKCS8), and the
// signature by which a client with a bare key may have to show that it has the private one.
func checkGlobalSignKey(text, signature string, p GlobalSignPolicy, c complaints) globalSignKey {
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		c.add("public_key", "not one block of PEM")
		return globalSignKey{}
	}
	key, public, err := decodeGlobalSignKey(block, p.PublicKey.KeyFormat)
	if err != nil {
		c.add("public_key", "%v", err)
		return globalSignKey{}
	}
	p.PublicKey.checkKey(public, c)
	switch {
	case signature == "" && p.PublicKeySignature == PresenceRequired:
		c.add("public_key_signature", "required by the validation policy")
	case signature != "" && p.PublicKeySignature == PresenceForbidden:
		c.add("public_key_signature", "forbidden by the validation policy")
	case signature != "":
		if err := verifyPossession(public, block.Bytes, signature); err != nil {
			c.add("public_key_signature", "%v", err)
		}
	}
	return key
}

func decodeGlobalSignKey(block *pem.Block, format string) (key globalSignKey, public crypto.PublicKey, err error) {
	if format == "PKCS10" {
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE REQUEST" {
			return key, nil, errors.New("the validation policy wants a PKCS#10 certificate signing request")
		}
		if err := csr.CheckSignature(); err != nil {
			return key, nil, errors.New("the signature of the certificate signing request is wrong")
		}
		return globalSignKey{csr: block.Bytes}, csr.PublicKey, nil
	}
	public, err = x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil || block.Type != "PUBLIC KEY" {
		return key, nil, errors.New("the validation policy wants a public key")
	}
	return globalSignKey{public: block.Bytes}, public, nil
}

// verifyPossession checks public_key_signature: over the DER of the public key, with SHA-256, base64.
func verifyPossession(public crypto.PublicKey, der []byte, signature string) error {
	raw, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return errors.New("not base64")
	}
	sum := sha256.Sum256(der)
	switch k := public.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], raw) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, sum[:], raw) {
			return nil
		}
	}
	return errors.New("the signature is not by the private key of public_key")
}

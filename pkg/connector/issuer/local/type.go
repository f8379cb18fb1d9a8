package local

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
)

// MaterialField is the secret that holds Material.Encode. It is stored by certctl itself when it makes the CA and is
// nothing that a user gives.
const MaterialField = "material"

// Settings are a local issuer's settings in the API. Without files the CA is self-made.
type Settings struct {
	// CommonName, Organization and Country are the subject of a self-made CA.
	CommonName   string `json:"common_name,omitempty"`
	Organization string `json:"organization,omitempty"`
	Country      string `json:"country,omitempty"`
	// CertificateFile, KeyFile and RootFile are absolute paths on the server: a subordinate CA.
	CertificateFile string `json:"certificate_file,omitempty"`
	KeyFile         string `json:"key_file,omitempty"`
	RootFile        string `json:"root_file,omitempty"`
	// CRLURLs and IssuingCertificateURLs go into each certificate.
	CRLURLs                []string `json:"crl_urls,omitempty"`
	IssuingCertificateURLs []string `json:"issuing_certificate_urls,omitempty"`
}

// Type describes local issuers.
func Type() issuer.Type {
	return issuer.Type{
		Name:         TypeName,
		Capabilities: capabilities(),
		SecretFields: []string{MaterialField},
		Validate: func(raw json.RawMessage, secretsSet []string) error {
			_, err := ParseSettings(raw, secretsSet)
			return err
		},
		New: newFromSettings,
	}
}

// ParseSettings reads and judges settings. The error is an errs.Invalid.
func ParseSettings(raw json.RawMessage, secretsSet []string) (Settings, error) {
	var s Settings
	if err := issuer.Decode(raw, &s); err != nil {
		return Settings{}, err
	}
	var v errs.Violations
	s.checkSubject(&v)
	s.checkFiles(&v, slices.Contains(secretsSet, MaterialField))
	checkURLs(&v, "crl_urls", s.CRLURLs)
	checkURLs(&v, "issuing_certificate_urls", s.IssuingCertificateURLs)
	return s, v.Err()
}

// SelfMade tells whether the CA is generated, so that its material has to be made and stored before New.
func (s Settings) SelfMade() bool { return s.CertificateFile == "" }

// Subject gives the subject of a self-made CA.
func (s Settings) Subject() Subject {
	return Subject{CommonName: s.CommonName, Organization: s.Organization, Country: s.Country}
}

// checkSubject holds the lengths of RFC 5280, appendix A.1, with room for " Root".
func (s Settings) checkSubject(v *errs.Violations) {
	const maxName, maxOrganization = 64 - len(" Root"), 64
	if n := len(s.CommonName); n > maxName {
		v.Add("common_name", "has %d characters: the most is %d", n, maxName)
	}
	if n := len(s.Organization); n > maxOrganization {
		v.Add("organization", "has %d characters: the most is %d", n, maxOrganization)
	}
	if !countryCode(s.Country) {
		v.Add("country", "%q is not a country code of two capital letters", s.Country)
	}
}

func countryCode(s string) bool {
	capital := func(b byte) bool { return 'A' <= b && b <= 'Z' }
	return s == "" || len(s) == 2 && capital(s[0]) && capital(s[1])
}

func (s Settings) checkFiles(v *errs.Violations, material bool) {
	files := map[string]string{"certificate_file": s.CertificateFile, "key_file": s.KeyFile, "root_file": s.RootFile}
	for _, field := range []string{"certificate_file", "key_file", "root_file"} {
		if p := files[field]; p != "" && !filepath.IsAbs(p) {
			v.Add(field, "%q is not an absolute path", p)
		}
	}
	switch {
	case s.SelfMade() && s.KeyFile != "":
		v.Add("certificate_file", "is needed with key_file")
	case s.SelfMade() && s.RootFile != "":
		v.Add("certificate_file", "is needed with root_file")
	case !s.SelfMade() && s.KeyFile == "":
		v.Add("key_file", "is needed with certificate_file")
	case !s.SelfMade() && material:
		v.Add("certificate_file", "this issuer is a self-made CA and cannot become another: create a new issuer")
	case !s.SelfMade() && s.Subject() != Subject{}:
		v.Add("certificate_file", "the subject is that of the file: leave common_name, organization and country out")
	}
}

func checkURLs(v *errs.Violations, field string, urls []string) {
	for i, u := range urls {
		if !httpURL(u) {
			v.Add(fmt.Sprintf("%s[%d]", field, i), "%q is no absolute http or https URL", u)
		}
	}
}

func newFromSettings(_ context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
	material := c.Secrets[MaterialField]
	var set []string
	if !material.IsZero() {
		set = append(set, MaterialField)
	}
	s, err := ParseSettings(c.Settings, set)
	if err != nil {
		return nil, err
	}
	ca, err := s.load(c, d)
	if err != nil {
		return nil, err
	}
	i, err := New(Config{CA: ca, CRLURLs: s.CRLURLs, IssuingCertificateURLs: s.IssuingCertificateURLs}, d)
	if err != nil {
		return nil, err
	}
	return i, nil
}

func (s Settings) load(c issuer.Config, d issuer.Deps) (CA, error) {
	now := d.Clock()()
	if !s.SelfMade() {
		return LoadFiles(Files{Certificate: s.CertificateFile, Key: s.KeyFile, Root: s.RootFile}, now)
	}
	secret := c.Secrets[MaterialField]
	if secret.IsZero() {
		return CA{}, issuer.Misconfigured("CA_MATERIAL_MISSING", "the local CA has not been generated yet")
	}
	m, err := DecodeMaterial(secret)
	if err != nil {
		return CA{}, err
	}
	return m.CA(now)
}

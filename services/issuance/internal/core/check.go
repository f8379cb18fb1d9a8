package core

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
)

// Request is a certificate that somebody wants.
type Request struct {
	IssuerID     string
	ProfileID    string
	Names        certcheck.RawNames
	KeyAlgorithm string // "": any that the profile allows
}

// Allowed is a request as it would be asked for.
type Allowed struct {
	Names        certcheck.RawNames
	KeyAlgorithm string
}

// CheckRequest tells whether issuer and profile would allow a certificate. Rules that it breaks are an errs.Invalid with
// the fields of a certificate.
func (c *Core) CheckRequest(ctx context.Context, r Request) (Allowed, error) {
	var v errs.Violations
	if _, err := c.usableIssuer(ctx, &v, r.IssuerID); err != nil {
		return Allowed{}, err
	}
	p, patterns, err := c.readProfile(ctx, &v, r.ProfileID)
	if err != nil {
		return Allowed{}, err
	}
	// Without a profile the names are judged by nothing but their form.
	if p.ID == "" {
		p.AllowWildcards = true
	}
	names := judgeNames(&v, r.Names, rules{profile: p, patterns: patterns})
	algorithm := r.KeyAlgorithm
	if p.ID != "" {
		algorithm = chooseAlgorithm(&v, r.KeyAlgorithm, p.AllowedKeyAlgorithms, p.ID)
	}
	if err := v.Err(); err != nil {
		return Allowed{}, err
	}
	return Allowed{Names: names.Raw(), KeyAlgorithm: algorithm}, nil
}

// judgeNames brings names into canonical form and holds them against the profile.
func judgeNames(v *errs.Violations, raw certcheck.RawNames, r rules) certcheck.Names {
	names, err := certcheck.ParseNames(raw)
	if err != nil {
		merge(v, err, func(field string) string {
			if field == "" {
				return "dns_names"
			}
			return field
		})
		return certcheck.Names{}
	}
	checkNames(v, names, r.patterns, r.profile.AllowWildcards, r.profile.ID)
	return names
}

func chooseAlgorithm(v *errs.Violations, wanted string, allowed []string, profileID string) string {
	if wanted == "" && len(allowed) > 0 {
		return allowed[0]
	}
	if !slices.Contains(allowed, wanted) {
		v.Add("key_algorithm", "%s is not among those of profile %s: %v", wanted, profileID, allowed)
	}
	return wanted
}

// merge takes over the violations of an errs.Invalid under other names.
func merge(v *errs.Violations, err error, rename func(string) string) {
	e := errs.From(err)
	if len(e.Violations()) == 0 {
		v.Add(rename(""), "%s", e.Message())
	}
	for _, violation := range e.Violations() {
		v.Add(rename(violation.Field), "%s", violation.Description)
	}
}

// CSRRequest is a request with the CSR for it.
type CSRRequest struct {
	Request

	CSR []byte
}

// CheckCSR tells whether a CSR is the right one for names, profile and issuer. Rules that it breaks are an errs.Invalid.
func (c *Core) CheckCSR(ctx context.Context, r CSRRequest) error {
	if r.ProfileID == "" {
		r.ProfileID = DefaultProfileID
	}
	// Asked rarely and by people who have just changed a profile: what is remembered may be stale.
	c.known.forget(r.IssuerID, r.ProfileID)
	ru, err := c.rulesFor(ctx, r.IssuerID, r.ProfileID)
	if err != nil {
		return err
	}
	_, _, err = ru.judge(r)
	return err
}

// judge holds names and CSR against the rules.
func (ru rules) judge(r CSRRequest) (certcheck.Names, *x509.CertificateRequest, error) {
	var v errs.Violations
	names := judgeNames(&v, r.Names, ru)
	algorithms := ru.profile.AllowedKeyAlgorithms
	if r.KeyAlgorithm != "" {
		chooseAlgorithm(&v, r.KeyAlgorithm, algorithms, ru.profile.ID)
		algorithms = []string{r.KeyAlgorithm}
	}
	if err := v.Err(); err != nil {
		return certcheck.Names{}, nil, err
	}
	csr, err := certcheck.CheckCSR(r.CSR, certcheck.Want{Names: names, KeyAlgorithms: keyAlgorithms(algorithms)})
	if err != nil {
		merge(&v, err, func(string) string { return "csr_pem" })
	}
	return names, csr, v.Err()
}

func keyAlgorithms(names []string) []certcheck.KeyAlgorithm {
	out := make([]certcheck.KeyAlgorithm, 0, len(names))
	for _, n := range names {
		out = append(out, certcheck.KeyAlgorithm(n))
	}
	return out
}

// digest hashes length-prefixed texts, so that no two lists look alike.
func digest(parts ...string) []byte {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

func asPermanent(err error) (*issuer.PermanentError, bool) { return issuer.AsPermanent(err) }

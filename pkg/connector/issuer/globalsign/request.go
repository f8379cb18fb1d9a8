package globalsign

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/requestcheck"
)

// backdate is how far before the order a certificate begins, for clients whose clock is slow, where the policy allows it.
const backdate = 5 * time.Minute

// maxCommonName is ub-common-name of RFC 5280, appendix A.1.
const maxCommonName = 64

// precheck refuses what needs no look at the policy.
func precheck(r issuer.SubmitRequest, now time.Time) error {
	if err := requestcheck.Check(r); err != nil {
		return err
	}
	_, err := requestcheck.End(r, now)
	return err
}

// newRequest puts an order into the form that the account's policy wants. What the policy has the CA put in by itself is
// left out; what it forbids of the names is refused, as a certificate without them would be of no use.
func newRequest(r issuer.SubmitRequest, p policy, s Subject, now time.Time) (certificateRequest, error) {
	if err := p.check(r.CSR.PublicKey); err != nil {
		return certificateRequest{}, err
	}
	v, err := p.validity(r, now)
	if err != nil {
		return certificateRequest{}, err
	}
	names, err := p.names(r.Names)
	if err != nil {
		return certificateRequest{}, err
	}
	usages, err := p.usages(r.ExtKeyUsages)
	if err != nil {
		return certificateRequest{}, err
	}
	key, err := p.key(r.CSR)
	if err != nil {
		return certificateRequest{}, err
	}
	subject, err := p.subject(r.Names, s)
	if err != nil {
		return certificateRequest{}, err
	}
	return certificateRequest{Validity: v, SubjectDN: subject, SAN: names, ExtendedKeyUsages: usages, Signature: p.signature(), PublicKey: key}, nil
}

// validity shortens what is wanted to what the policy allows.
func (p policy) validity(r issuer.SubmitRequest, now time.Time) (validity, error) {
	end, err := requestcheck.End(r, now)
	if err != nil {
		return validity{}, err
	}
	back := min(backdate, time.Duration(max(p.Validity.NegativeSkew, 0))*time.Second/2)
	v := validity{NotBefore: now.Add(-back).Unix(), NotAfter: end.Unix()}
	if most := p.Validity.SecondsMax; most > 0 {
		v.NotAfter = min(v.NotAfter, v.NotBefore+most)
	}
	if last := p.Validity.IssuerExpiry; last > 0 {
		v.NotAfter = min(v.NotAfter, last)
	}
	if seconds := v.NotAfter - v.NotBefore; seconds < p.Validity.SecondsMin || v.NotAfter <= now.Unix() {
		return validity{}, issuer.Permanent("LIFETIME_NOT_SUPPORTED", "a lifetime of %s is shorter than the %s that the validation policy of the account asks for",
			time.Duration(seconds)*time.Second, time.Duration(p.Validity.SecondsMin)*time.Second)
	}
	return v, nil
}

// names gives the subject alternative names.
func (p policy) names(n certcheck.Names) (*san, error) {
	for _, each := range []struct {
		kind   string
		values []string
		policy listPolicy
	}{
		{"DNS names", n.DNSNames, p.DNSNames}, {"IP addresses", n.IPStrings(), p.IPAddresses},
		{"email addresses", n.EmailAddresses, p.Emails}, {"URIs", n.URIs, p.URIs},
	} {
		most := each.policy.MaxCount
		switch {
		case len(each.values) == 0 || !each.policy.known:
		case each.policy.Static || most == 0:
			return nil, issuer.Permanent("NAMES_NOT_SUPPORTED", "the validation policy of the account takes no %s", each.kind)
		case len(each.values) > most:
			return nil, issuer.Permanent("NAMES_NOT_SUPPORTED", "the validation policy of the account takes at most %d %s: %d are asked for",
				most, each.kind, len(each.values))
		}
	}
	return &san{DNSNames: n.DNSNames, IPAddresses: n.IPStrings(), Emails: n.EmailAddresses, URIs: n.URIs}, nil
}

// subject gives the subject: the common name, which is always one of the names, and what the settings say besides.
func (p policy) subject(n certcheck.Names, s Subject) (*subjectDN, error) {
	d := subjectDN{CommonName: n.CommonName}
	switch {
	case !p.CommonName.send() || p.subjectKnown && p.CommonName.Presence == "":
		d.CommonName = ""
	case p.CommonName.Presence == required && d.CommonName == "":
		if d.CommonName = commonName(n); d.CommonName == "" {
			return nil, issuer.Permanent("COMMON_NAME_REQUIRED", "the validation policy of the account wants a common name, and none of the names is short enough for one")
		}
	}
	for _, each := range []struct {
		value  string
		policy stringPolicy
		into   *string
	}{
		{s.Organization, p.Organization, &d.Organization}, {s.Country, p.Country, &d.Country}, {s.State, p.State, &d.State},
		{s.Locality, p.Locality, &d.Locality}, {s.StreetAddress, p.StreetAddress, &d.StreetAddress},
	} {
		if each.policy.send() {
			*each.into = each.value
		}
	}
	if !p.OrganizationalUnit.Static {
		d.OrganizationalUnit = s.OrganizationalUnits
	}
	if d.empty() {
		return nil, nil //nolint:nilnil // no subject is not an error
	}
	return &d, nil
}

// commonName gives a name that can be one.
func commonName(n certcheck.Names) string {
	for _, name := range append(append([]string{}, n.DNSNames...), n.IPStrings()...) {
		if len(name) <= maxCommonName {
			return name
		}
	}
	return ""
}

// usages gives the extended key usages as OIDs.
func (p policy) usages(wanted []x509.ExtKeyUsage) ([]string, error) {
	if p.ExtKeyUsages.Static {
		return nil, nil
	}
	out := make([]string, 0, len(wanted))
	for _, u := range wanted {
		if u < x509.ExtKeyUsageAny || u > x509.ExtKeyUsageMicrosoftKernelCodeSigning {
			return nil, issuer.Permanent("KEY_USAGE_REFUSED", "extended key usage %s is not known", u)
		}
		out = append(out, u.OID().String())
	}
	return out, nil
}

// signature names the algorithms of the CA's signature where the policy has no single ones.
func (p policy) signature() *signature {
	s := signature{Algorithm: p.SignatureAlgorithm.choose(""), HashAlgorithm: p.HashAlgorithm.choose("SHA-256")}
	if s == (signature{}) {
		return nil
	}
	return &s
}

// key gives the key as PEM, without the last end of line as GlobalSign's own client does.
func (p policy) key(csr *x509.CertificateRequest) (string, error) {
	block := &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}
	if p.KeyFormat == formatPKCS8 {
		der, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
		if err != nil {
			return "", issuer.Permanent("KEY_REFUSED", "the key cannot be encoded: %v", err)
		}
		block = &pem.Block{Type: "PUBLIC KEY", Bytes: der}
	}
	return strings.TrimSuffix(string(pem.EncodeToMemory(block)), "\n"), nil
}

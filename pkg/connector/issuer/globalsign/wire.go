package globalsign

import "encoding/json"

// loginRequest and loginResponse are the body and the answer of POST /login.
type loginRequest struct {
	APIKey    string `json:"api_key"`
	APISecret string `json:"api_secret"`
}

type loginResponse struct {
	AccessToken string `json:"access_token"`
}

// certificateRequest is the body of POST /certificates. Of a CSR in public_key the CA takes nothing but the key.
type certificateRequest struct {
	Validity          validity   `json:"validity"`
	SubjectDN         *subjectDN `json:"subject_dn,omitempty"`
	SAN               *san       `json:"san,omitempty"`
	ExtendedKeyUsages []string   `json:"extended_key_usages,omitempty"`
	Signature         *signature `json:"signature,omitempty"`
	PublicKey         string     `json:"public_key"`
}

// validity is in seconds since 1970. The CA reads a not_after of 0 as "as long as the policy allows": it is never sent.
type validity struct {
	NotBefore int64 `json:"not_before"`
	NotAfter  int64 `json:"not_after"`
}

type subjectDN struct {
	CommonName         string   `json:"common_name,omitempty"`
	Organization       string   `json:"organization,omitempty"`
	OrganizationalUnit []string `json:"organizational_unit,omitempty"`
	Country            string   `json:"country,omitempty"`
	State              string   `json:"state,omitempty"`
	Locality           string   `json:"locality,omitempty"`
	StreetAddress      string   `json:"street_address,omitempty"`
}

func (d subjectDN) empty() bool {
	return d.CommonName == "" && d.Organization == "" && len(d.OrganizationalUnit) == 0 && d.Country == "" && d.State == "" &&
		d.Locality == "" && d.StreetAddress == ""
}

type san struct {
	DNSNames    []string `json:"dns_names,omitempty"`
	IPAddresses []string `json:"ip_addresses,omitempty"`
	Emails      []string `json:"emails,omitempty"`
	URIs        []string `json:"uris,omitempty"`
}

type signature struct {
	Algorithm     string `json:"algorithm,omitempty"`
	HashAlgorithm string `json:"hash_algorithm,omitempty"`
}

// certificateInfo is the answer of GET /certificates/{serial}.
type certificateInfo struct {
	Certificate string `json:"certificate"` // PEM
	Status      string `json:"status"`      // ISSUED, REVOKED
	UpdatedAt   int64  `json:"updated_at"`
}

// The values of certificateInfo.Status.
const (
	statusIssued  = "ISSUED"
	statusRevoked = "REVOKED"
)

// revocationPatch is the body of PATCH /certificates/{serial}.
type revocationPatch struct {
	Reason string `json:"revocation_reason"`
}

// issuedEntry is one certificate in the answer of GET /stats/issued, which shows neither names nor keys.
type issuedEntry struct {
	SerialNumber string `json:"serial_number"`
	NotBefore    int64  `json:"not_before"`
	NotAfter     int64  `json:"not_after"`
}

// counter is the answer of GET /quotas/issuance and of the counters.
type counter struct {
	Value *int64 `json:"value"`
}

// problem is the body of errors (application/problem+json). Errors says per field what is wrong; its values are mostly
// strings.
type problem struct {
	Description string                     `json:"description"`
	Errors      map[string]json.RawMessage `json:"errors"`
}

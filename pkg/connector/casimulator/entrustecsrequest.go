package casimulator

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// ecsRequest is the body of POST certificates, renewals and reissues.
type ecsRequest struct {
	CSR                        string       `json:"csr"`
	CertType                   string       `json:"certType"`
	ClientID                   int          `json:"clientId"`
	Org                        string       `json:"org"`
	OU                         []string     `json:"ou"`
	EKU                        string       `json:"eku"`
	SigningAlg                 string       `json:"signingAlg"`
	CertExpiryDate             string       `json:"certExpiryDate"`
	CertLifetime               string       `json:"certLifetime"`
	SubjectAltName             []string     `json:"subjectAltName"`
	CTLog                      *ecsBool     `json:"ctLog"`
	Tracking                   *ecsTracking `json:"tracking"`
	ValidateOnly               ecsBool      `json:"validateOnly"`
	QueueForApproval           ecsBool      `json:"queueForApproval"`
	CN                         string       `json:"cn"`
	CertEmail                  string       `json:"certEmail"`
	UPN                        string       `json:"upn"`
	Password                   string       `json:"password"`
	EndUserKeyStorageAgreement *ecsBool     `json:"endUserKeyStorageAgreement"`
}

// ecsTracking is about the order rather than the certificate.
type ecsTracking struct {
	TrackingInfo     string          `json:"trackingInfo"`
	RequesterName    string          `json:"requesterName"`
	RequesterEmail   string          `json:"requesterEmail"`
	RequesterPhone   string          `json:"requesterPhone"`
	AdditionalEmails []string        `json:"additionalEmails,omitempty"`
	CustomFields     json.RawMessage `json:"customFields,omitempty"`
	Deactivated      bool            `json:"deactivated"`
	DeactivatedOn    *time.Time      `json:"deactivatedOn,omitempty"`
}

// ecsTypes are the certificate types for servers.
func ecsTypes() []string {
	return []string{
		"STANDARD_SSL", "ADVANTAGE_SSL", "UC_SSL", "EV_SSL", "QWAC_SSL", "QWACPSD2_SSL", "WILDCARD_SSL", "PRIVATE_SSL", "PD_SSL",
	}
}

// ecsPrivate says of a type that it is not from a public CA.
func ecsPrivate(certType string) bool { return certType == "PRIVATE_SSL" || certType == "PD_SSL" }

const (
	// ecsLongest is the longest validity of a public certificate: thirteen months. ecsLongestPrivate is that of others.
	ecsLongest        = 398 * 24 * time.Hour
	ecsLongestPrivate = 3*366*24*time.Hour + 24*time.Hour
)

// ecsEastern is the zone in which an expiry with a time is taken to a date.
const ecsEastern = -5 * 60 * 60

// complain gathers all that is wrong with a request.
type complain []string

func (c *complain) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

// fill judges a request and writes what is to be certified. What a renewal does not say is as it was.
func (a *entrustecsAPI) fill(in *ecsRequest, r *request, now time.Time) complain {
	var wrong complain
	csr, err := ecsCSR(in.CSR)
	if err != nil {
		wrong.add("%v", err)
		return wrong
	}
	if !slices.Contains(ecsTypes(), in.CertType) {
		wrong.add("certType %q is not one of %v", in.CertType, ecsTypes())
	}
	r.CSR = csr.Raw
	a.fillOrganization(in, r, &wrong)
	in.fillNames(csr, r, &wrong)
	in.fillUsages(r, &wrong)
	in.fillExpiry(r, now, &wrong)
	in.checkRest(&wrong)
	return wrong
}

// ecsCSR reads a CSR with or without the lines that PEM puts around it.
func ecsCSR(text string) (*x509.CertificateRequest, error) {
	if text == "" {
		return nil, errors.New("csr is required")
	}
	if strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN") {
		return parseCSR(text)
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("csr is not base64")
	}
	return checkCSR(der)
}

func (a *entrustecsAPI) fillOrganization(in *ecsRequest, r *request, wrong *complain) {
	client := cmp.Or(in.ClientID, 1)
	at := slices.IndexFunc(a.allClients(), func(c ecsClient) bool { return c.ClientID == client })
	if at < 0 || a.allClients()[at].VerificationStatus != "APPROVED" {
		wrong.add("clientId %d is not an approved client", client)
		return
	}
	r.Organization = a.allClients()[at].ClientName
	if in.Org == "" {
		return
	}
	approved := func(o ecsOrganization) bool {
		return strings.EqualFold(o.Name, in.Org) && o.ClientID == client && o.VerificationStatus == "APPROVED"
	}
	if !slices.ContainsFunc(a.allOrganizations(), approved) {
		wrong.add("org %q is not an approved organization of client %d", in.Org, client)
	}
	r.Organization = in.Org
}

// fillNames takes the names of subjectAltName, and those of the CSR only when there are none.
func (in *ecsRequest) fillNames(csr *x509.CertificateRequest, r *request, wrong *complain) {
	names := in.SubjectAltName
	if len(names) == 0 {
		names = slices.Clone(csr.DNSNames)
		for _, ip := range csr.IPAddresses {
			names = append(names, ip.String())
		}
	}
	for _, n := range names {
		switch {
		case net.ParseIP(n) != nil:
			r.IPAddresses = append(r.IPAddresses, n)
		case n == "" || strings.ContainsAny(n, " /:@_"):
			wrong.add("subjectAltName %q is not a domain name", n)
		case !slices.Contains(r.DNSNames, n):
			r.DNSNames = append(r.DNSNames, n)
		}
	}
	r.CommonName = csr.Subject.CommonName
	if r.CommonName == "" && len(r.DNSNames) > 0 {
		r.CommonName = r.DNSNames[0]
	}
	if r.CommonName == "" {
		wrong.add("the CSR has no common name")
		return
	}
	if net.ParseIP(r.CommonName) == nil && !slices.Contains(r.DNSNames, r.CommonName) {
		r.DNSNames = append([]string{r.CommonName}, r.DNSNames...)
	}
	in.checkNames(r, wrong)
}

// checkNames holds the names against what is sold with the type.
func (in *ecsRequest) checkNames(r *request, wrong *complain) {
	bare := strings.TrimPrefix(r.CommonName, "www.")
	others := 0
	for _, n := range r.DNSNames {
		if strings.HasPrefix(n, "*.") && in.CertType != "WILDCARD_SSL" && !ecsPrivate(in.CertType) {
			wrong.add("subjectAltName %q: %s certificates have no wildcards", n, in.CertType)
		}
		if n != bare && n != "www."+bare && n != r.CommonName {
			others++
		}
	}
	switch {
	case in.CertType == "STANDARD_SSL" && others > 0:
		wrong.add("STANDARD_SSL certificates are for %s and www.%[1]s only", bare)
	case in.CertType == "ADVANTAGE_SSL" && others > 1:
		wrong.add("ADVANTAGE_SSL certificates have one more subjectAltName at most")
	case len(r.IPAddresses) > 0 && !ecsPrivate(in.CertType):
		wrong.add("subjectAltName: %s certificates have no IP addresses", in.CertType)
	}
}

func (in *ecsRequest) fillUsages(r *request, wrong *complain) {
	server, client := "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"
	switch in.EKU {
	case "", "SERVER_AUTH":
		r.ExtKeyUsages = []string{server}
	case "CLIENT_AUTH":
		r.ExtKeyUsages = []string{client}
	case "SERVER_AND_CLIENT_AUTH":
		r.ExtKeyUsages = []string{server, client}
	default:
		wrong.add("eku %q is none of SERVER_AUTH, CLIENT_AUTH, SERVER_AND_CLIENT_AUTH", in.EKU)
	}
}

// fillExpiry takes a date, or the lifetime of accounts without a pool. Of an expiry with a time the date counts that it
// has in the eastern United States.
func (in *ecsRequest) fillExpiry(r *request, now time.Time, wrong *complain) {
	longest := ecsLongest
	if ecsPrivate(in.CertType) {
		longest = ecsLongestPrivate
	}
	switch {
	case (in.CertExpiryDate == "") == (in.CertLifetime == ""):
		wrong.add("one of certExpiryDate and certLifetime is required")
		return
	case in.CertLifetime != "":
		if !slices.Contains([]string{"P1Y", "P2Y", "P3Y"}, in.CertLifetime) {
			wrong.add("certLifetime %q is none of P1Y, P2Y, P3Y", in.CertLifetime)
			return
		}
		r.NotAfter, _ = addPeriod(now, in.CertLifetime, 1) // it is one of three
		r.NotAfter = r.NotAfter.Truncate(time.Second)
	default:
		day, err := time.Parse(time.DateOnly, in.CertExpiryDate)
		if err != nil {
			at, err := time.Parse(time.RFC3339, in.CertExpiryDate)
			if err != nil {
				wrong.add("certExpiryDate %q is not a date of RFC 3339", in.CertExpiryDate)
				return
			}
			y, m, d := at.In(time.FixedZone("EST", ecsEastern)).Date()
			day = time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
		}
		r.NotAfter = day.Add(24*time.Hour - time.Second)
	}
	if life := r.NotAfter.Sub(now); life <= 0 || life > longest {
		wrong.add("the certificate would end in %v, allowed is up to %v", life.Round(time.Hour), longest)
	}
}

func (in *ecsRequest) checkRest(wrong *complain) {
	if in.SigningAlg != "" && in.SigningAlg != "SHA-2" {
		wrong.add("signingAlg %q is not SHA-2", in.SigningAlg)
	}
	if in.CN != "" || in.CertEmail != "" || in.UPN != "" || in.Password != "" || in.EndUserKeyStorageAgreement != nil {
		wrong.add("cn, certEmail, upn, password and endUserKeyStorageAgreement are not for %s certificates", in.CertType)
	}
	t := in.Tracking
	if t == nil || t.RequesterName == "" || t.RequesterEmail == "" || t.RequesterPhone == "" {
		wrong.add("tracking requires requesterName, requesterEmail and requesterPhone")
		return
	}
	if !strings.Contains(t.RequesterEmail, "@") {
		wrong.add("tracking.requesterEmail %q is not an e-mail address", t.RequesterEmail)
	}
}

// keySize is how the API writes the strength of the key of a CSR.
func keySize(csr []byte) int {
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return 0
	}
	switch k := parsed.PublicKey.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen()
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize
	}
	return 0
}

package entrustecs

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"regexp"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/connector/issuer/requestcheck"
)

// privateType is the one product for names that are not public.
const privateType = "PRIVATE_SSL"

// newRequest makes the request for a new certificate of an order.
func newRequest(r issuer.SubmitRequest, s Settings, now time.Time) (certificateRequest, error) {
	if err := requestcheck.Check(r); err != nil {
		return certificateRequest{}, err
	}
	end, err := requestcheck.End(r, now)
	if err != nil {
		return certificateRequest{}, err
	}
	names, err := altNames(r.Names, s.CertType)
	if err != nil {
		return certificateRequest{}, err
	}
	eku, err := extendedKeyUsage(r.ExtKeyUsages)
	if err != nil {
		return certificateRequest{}, err
	}
	if err := checkCommonName(r.CSR, r.Names); err != nil {
		return certificateRequest{}, err
	}
	expiry, err := expiryDate(end, now)
	if err != nil {
		return certificateRequest{}, err
	}
	queue := s.QueueForApproval
	return certificateRequest{
		CSR:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR.Raw})),
		CertType:         s.CertType,
		ClientID:         s.ClientID,
		Org:              s.Organization,
		SubjectAltName:   names,
		EKU:              eku,
		SigningAlg:       signingAlgorithm,
		CertExpiryDate:   expiry,
		CTLog:            s.CTLog,
		QueueForApproval: &queue,
		Tracking: tracking{
			TrackingInfo: r.OrderID, RequesterName: s.RequesterName, RequesterEmail: s.RequesterEmail, RequesterPhone: s.RequesterPhone,
			AdditionalEmails: s.AdditionalEmails,
		},
	}, nil
}

// altNames gives the subject alternative names, for which the API has one list without kinds.
func altNames(n certcheck.Names, certType string) ([]string, error) {
	if len(n.EmailAddresses) > 0 || len(n.URIs) > 0 {
		return nil, issuer.Permanent("NAMES_NOT_SUPPORTED", "Entrust Certificate Services takes no email addresses and URIs for servers")
	}
	if len(n.IPAddresses) > 0 && certType != privateType {
		return nil, issuer.Permanent("NAMES_NOT_SUPPORTED", "Entrust Certificate Services takes IP addresses in %s certificates only", privateType)
	}
	return append(append([]string{}, n.DNSNames...), n.IPStrings()...), nil
}

// checkCommonName: Entrust puts the CSR's common name into the certificate, and so among its names.
func checkCommonName(csr *x509.CertificateRequest, n certcheck.Names) error {
	cn := csr.Subject.CommonName
	if cn == "" {
		return nil
	}
	raw := n.Raw()
	raw.CommonName = cn
	if _, err := certcheck.ParseNames(raw); err != nil {
		return issuer.Permanent("CSR_REFUSED", "Entrust certifies the common name of the CSR, which is none of the order's names: %q", caclient.Clean(cn))
	}
	return nil
}

func extendedKeyUsage(usages []x509.ExtKeyUsage) (string, error) {
	var server, client bool
	for _, u := range usages {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			server = true
		case x509.ExtKeyUsageClientAuth:
			client = true
		default:
			return "", issuer.Permanent("KEY_USAGE_REFUSED", "Entrust Certificate Services certifies servers and clients only, not %s", u)
		}
	}
	switch {
	case server && client:
		return ekuBoth, nil
	case client:
		return ekuClient, nil
	case server:
		return ekuServer, nil
	}
	return "", nil
}

// expiryDate gives the end of a certificate. Entrust takes days, by Eastern Standard Time, and the certificate may end at any
// time of its last one: so it is the last day that is over before the end.
func expiryDate(end, now time.Time) (string, error) {
	eastern := time.FixedZone("EST", -5*3600)
	day := end.In(eastern).AddDate(0, 0, -1).Format(time.DateOnly)
	if day <= now.In(eastern).Format(time.DateOnly) {
		return "", issuer.Permanent("LIFETIME_NOT_SUPPORTED", "Entrust counts in whole days: a certificate that ends by %s would be valid for none",
			end.Format(time.RFC3339))
	}
	return day, nil
}

// serialForm is how Entrust writes serial numbers: hex of at most 20 octets, without leading zeros.
var serialForm = regexp.MustCompile(`^[0-9A-Fa-f]{1,40}$`)

// canonical gives a serial number in our form.
func canonical(serial string) (string, bool) {
	if !serialForm.MatchString(serial) {
		return "", false
	}
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok || issuer.CheckSerial(n) != nil {
		return "", false
	}
	return issuer.FormatSerial(n), true
}

// keyOfDER names the key of a CSR, and is empty if it is none.
func keyOfDER(der []byte) string {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return ""
	}
	return caclient.KeyID(csr.PublicKey)
}

// keyOfText names the key of a CSR as Entrust shows it: PEM, or base64 without its armour.
func keyOfText(csr string) string {
	if block, _ := pem.Decode([]byte(csr)); block != nil {
		return keyOfDER(block.Bytes)
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(csr), ""))
	if err != nil {
		return ""
	}
	return keyOfDER(der)
}

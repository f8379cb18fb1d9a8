// Package digicert orders certificates of DigiCert by the CertCentral Services API v2.
//
// An order is placed with certctl's order id in its comments; the CA has no key that would make Submit repeatable, so a
// lost reply is reconciled by FindOrder. A renewal is a re-issue while the order before is paid for: it has the same order
// id and a new certificate id. Names come from the request and never from the CSR.
//
// Certificates are downloaded as pem_all, one PEM with leaf, intermediate and root, so that no zip or PKCS#7 has to be
// opened; were it PKCS#7, caclient.ParseBundle would read it.
package digicert

import (
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// TypeName is the name of the type in the API.
const TypeName = "digicert"

// The entries of a Ref. A re-issue has refReissue, and what was there before it, so that the old certificate is not taken
// for the new one.
const (
	refOrder       = "order_id"
	refCertificate = "certificate_id"
	refRequest     = "request_id"
	refKey         = "key_sha256"
	refCSR         = "csr_sha256"
	refReissue     = "reissue"
	refPrevious    = "previous_certificate_id"
)

// Issuer orders certificates. It is safe for concurrent use.
type Issuer struct {
	settings Settings
	client   *caclient.Client
	now      func() time.Time
}

var (
	_ issuer.Issuer    = (*Issuer)(nil)
	_ issuer.Revoker   = (*Issuer)(nil)
	_ issuer.Finder    = (*Issuer)(nil)
	_ issuer.Lister    = (*Issuer)(nil)
	_ issuer.Canceller = (*Issuer)(nil)
	_ issuer.Tester    = (*Issuer)(nil)
	_ issuer.Metered   = (*Issuer)(nil)
	_ issuer.Describer = (*Issuer)(nil)
)

// Account gives the guard of the CA account.
func (i *Issuer) Account() *account.Guard { return i.client.Account() }

// Capabilities are those of the type, with the bound of the product.
func (i *Issuer) Capabilities() issuer.Capabilities {
	c := capabilities()
	c.MaxValidity = i.settings.maxValidity(i.now())
	return c
}

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{
		Async: true, Revocation: true, OCSP: true, Find: true, List: true, Cancel: true, Reissue: true,
		Reasons: []issuer.Reason{
			issuer.Unspecified, issuer.KeyCompromise, issuer.AffiliationChanged, issuer.Superseded, issuer.CessationOfOperation,
		},
	}
}

// orderOf gives the order id of a reference. The error is permanent: no such order was ever placed here.
func orderOf(ref issuer.Ref) (string, error) {
	id := ref[refOrder]
	if !numeric(id) {
		return "", issuer.Permanent(issuer.ReasonOrderNotFound, "the reference holds no order id of DigiCert")
	}
	return id, nil
}

func numeric(s string) bool { return s != "" && len(s) < 20 && strings.Trim(s, "0123456789") == "" }

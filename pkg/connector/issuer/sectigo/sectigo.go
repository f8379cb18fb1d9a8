// Package sectigo orders certificates of Sectigo by the REST API of Sectigo Certificate Manager (SCM).
//
// An order is a request with certctl's order id in its comments; the CA has no key that would make Submit repeatable, so a
// lost reply is reconciled by FindOrder. SCM calls an order by its sslId, and a replacement keeps it: the reference then
// says which certificate was there before, so that the old one is not taken for the new.
//
// The common name is that of the CSR, as the API has no field for it; Submit refuses a CSR that asks for other names than
// the request. Bundles come in the order that the instance likes (root first with format pem): the leaf is found by its
// key.
package sectigo

import (
	"strings"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// TypeName is the name of the type in the API.
const TypeName = "sectigo"

// The entries of a Ref.
const (
	refSSL = "ssl_id"
	refKey = "key_sha256"
	// refSerial is that of the certificate, once it was collected.
	refSerial = "serial_number"
	// refReplaced says that the order is a replacement of the certificate with this serial number under the same sslId.
	refReplaced = "replaced_serial_number"
	// refAdopted says that the reply to the replacement was lost, and one that was under way was taken for it.
	refAdopted = "adopted"
)

// Issuer orders certificates. It is safe for concurrent use.
type Issuer struct {
	settings Settings
	client   *caclient.Client
	now      func() time.Time

	mu       sync.Mutex
	profile  *profile // as the CA had it at profiled
	profiled time.Time
}

var (
	_ issuer.Issuer    = (*Issuer)(nil)
	_ issuer.Revoker   = (*Issuer)(nil)
	_ issuer.Finder    = (*Issuer)(nil)
	_ issuer.Lister    = (*Issuer)(nil)
	_ issuer.Canceller = (*Issuer)(nil)
	_ issuer.Tester    = (*Issuer)(nil)
	_ issuer.Metered   = (*Issuer)(nil)
)

// Account gives the guard of the CA account.
func (i *Issuer) Account() *account.Guard { return i.client.Account() }

// OrderKey gives the sslId. Replacements keep it.
func (i *Issuer) OrderKey(ref issuer.Ref) string { return ref[refSSL] }

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{
		Async: true, Revocation: true, OCSP: true, Find: true, List: true, Cancel: true, Reissue: true,
		// Those that the API takes for reasonCode: 0, 1 and 3 to 5.
		Reasons: []issuer.Reason{
			issuer.Unspecified, issuer.KeyCompromise, issuer.AffiliationChanged, issuer.Superseded, issuer.CessationOfOperation,
		},
	}
}

// sslOf gives the sslId of a reference. The error is permanent: no such order was ever placed here.
func sslOf(ref issuer.Ref) (string, error) {
	id := ref[refSSL]
	if !numeric(id) {
		return "", issuer.Permanent(orderNotFound, "the reference holds no sslId of Sectigo")
	}
	return id, nil
}

func numeric(s string) bool { return s != "" && len(s) < 20 && strings.Trim(s, "0123456789") == "" }

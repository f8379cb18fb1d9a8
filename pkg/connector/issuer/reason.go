package issuer

import "fmt"

// Reason is why a certificate was revoked, by its CRLReason code (RFC 5280, section 5.3.1).
type Reason uint8

// The reasons; 7 is not used.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	RemoveFromCRL        Reason = 8 // delta CRLs only: nothing can be revoked for it
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

// Valid tells whether a certificate can be revoked for the reason.
func (r Reason) Valid() bool { return r <= AACompromise && r != 7 && r != RemoveFromCRL }

// String gives the name of the reason in RFC 5280.
func (r Reason) String() string {
	names := [...]string{
		"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded", "cessationOfOperation",
		"certificateHold", "", "removeFromCRL", "privilegeWithdrawn", "aACompromise",
	}
	if int(r) < len(names) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

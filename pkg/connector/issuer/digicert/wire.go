package digicert

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
)

// id is a number of the CA's. It is written as it was read: as text without sign.
type id string

// UnmarshalJSON takes a number or a string of digits; null is no id.
func (i *id) UnmarshalJSON(raw []byte) error {
	text := string(bytes.Trim(raw, `"`))
	if text == "null" || text == "" {
		return nil
	}
	if !numeric(text) {
		return errors.New("an id of the CA is no number")
	}
	*i = id(text)
	return nil
}

// MarshalJSON writes a number.
func (i id) MarshalJSON() ([]byte, error) { return json.Marshal(json.Number(i)) }

type reference struct {
	ID int64 `json:"id"`
}

// certificateRequest is the part of orders and re-issues that says what is to be certified.
type certificateRequest struct {
	CommonName     string       `json:"common_name"`
	DNSNames       []string     `json:"dns_names,omitempty"`
	CSR            string       `json:"csr"`
	SignatureHash  string       `json:"signature_hash"`
	ServerPlatform reference    `json:"server_platform"`
	CACertID       string       `json:"ca_cert_id,omitempty"`
	ProfileOption  string       `json:"profile_option,omitempty"`
	CertValidity   certValidity `json:"cert_validity"`
}

type certValidity struct {
	CustomExpirationDate string `json:"custom_expiration_date"`
}

type orderValidity struct {
	Years int `json:"years,omitempty"`
	Days  int `json:"days,omitempty"`
}

type orderRequest struct {
	Certificate                 certificateRequest `json:"certificate"`
	Organization                *reference         `json:"organization,omitempty"`
	OrderValidity               orderValidity      `json:"order_validity"`
	Comments                    string             `json:"comments"`
	Container                   *reference         `json:"container,omitempty"`
	PaymentMethod               string             `json:"payment_method,omitempty"`
	SkipApproval                bool               `json:"skip_approval"`
	DisableRenewalNotifications bool               `json:"disable_renewal_notifications"`
	DCVMethod                   string             `json:"dcv_method,omitempty"`
	RenewalOfOrderID            id                 `json:"renewal_of_order_id,omitempty"`
}

type reissueRequest struct {
	Certificate  certificateRequest `json:"certificate"`
	SkipApproval bool               `json:"skip_approval"`
	Comments     string             `json:"comments"`
}

// placed is the answer to an order or a re-issue.
type placed struct {
	ID               id        `json:"id"`
	Requests         []request `json:"requests"`
	CertificateID    id        `json:"certificate_id"`
	CertificateChain []struct {
		PEM string `json:"pem"`
	} `json:"certificate_chain"`
	DCVRandomValue string `json:"dcv_random_value"`
}

// request is something that an administrator approves.
type request struct {
	ID       id     `json:"id"`
	Type     string `json:"type"`
	Status   string `json:"status"`
	Comments string `json:"comments"`
}

// The types and states of requests.
const (
	requestRevoke    = "revoke"
	requestReissue   = "reissue"
	requestPending   = "pending"
	requestSubmitted = "submitted"
	requestApproved  = "approved"
	requestRejected  = "rejected"
)

type certificate struct {
	ID           id       `json:"id"`
	CommonName   string   `json:"common_name"`
	DNSNames     []string `json:"dns_names"`
	SerialNumber string   `json:"serial_number"`
	Status       string   `json:"status"` // in the list of re-issues
	DateCreated  string   `json:"date_created"`
	CSR          string   `json:"csr"`
}

type order struct {
	ID             id          `json:"id"`
	Status         string      `json:"status"`
	Certificate    certificate `json:"certificate"`
	DateCreated    string      `json:"date_created"`
	OrderValidTill string      `json:"order_valid_till"`
	Comments       string      `json:"comments"`
	Requests       []request   `json:"requests"`
	DCVRandomValue string      `json:"dcv_random_value"`

	retryAfter time.Duration // of the answer
}

type orderList struct {
	Orders []order `json:"orders"`
	Page   struct {
		Total int `json:"total"`
	} `json:"page"`
}

type reissueList struct {
	Certificates []certificate `json:"certificates"`
}

// csrHash gives the hash of the CSR that the CA shows; empty when it shows none.
func (c certificate) csrHash() string {
	csr, err := certcheck.ParseCSR([]byte(c.CSR))
	if err != nil {
		return ""
	}
	return hash(csr.Raw)
}

func hash(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// parseTime reads the forms of time that the API has; zero when it is none of them.
func parseTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05-0700", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

func hexOf(sum [32]byte) string { return hex.EncodeToString(sum[:]) }

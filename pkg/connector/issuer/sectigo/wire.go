package sectigo

import (
	"bytes"
	"errors"
	"math/big"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// id is a number of the CA's.
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

type customField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type enrollment struct {
	OrgID             int64         `json:"orgId"`
	CSR               string        `json:"csr"`
	CertType          int64         `json:"certType"`
	Term              int           `json:"term"`
	SubjAltNames      string        `json:"subjAltNames"`
	NumberServers     int           `json:"numberServers"`
	ServerType        int           `json:"serverType"`
	Comments          string        `json:"comments"`
	CustomFields      []customField `json:"customFields,omitempty"`
	ExternalRequester string        `json:"externalRequester,omitempty"`
}

type enrolled struct {
	SSLID id `json:"sslId"`
}

type replacement struct {
	CSR                     string   `json:"csr"`
	Reason                  string   `json:"reason"`
	CommonName              string   `json:"commonName"`
	SubjectAlternativeNames []string `json:"subjectAlternativeNames"`
}

type revocation struct {
	ReasonCode int    `json:"reasonCode"`
	Reason     string `json:"reason"`
}

type message struct {
	Message string `json:"message"`
}

// details are of one certificate; the list has the first four of them.
type details struct {
	SSLID                   id       `json:"sslId"`
	CommonName              string   `json:"commonName"`
	SubjectAlternativeNames []string `json:"subjectAlternativeNames"`
	SerialNumber            string   `json:"serialNumber"`
	ID                      id       `json:"id"` // newer name of sslId
	Status                  string   `json:"status"`
	Comments                string   `json:"comments"`
	Requested               string   `json:"requested"`
	Expires                 string   `json:"expires"`
	Term                    int      `json:"term"` // days
	ExternalRequester       string   `json:"externalRequester"`
	Requester               string   `json:"requester"`

	retryAfter time.Duration // of the answer
}

func (d details) number() string {
	if d.SSLID != "" {
		return string(d.SSLID)
	}
	return string(d.ID)
}

type profile struct {
	ID    int64 `json:"id"`
	Terms []int `json:"terms"`
}

// serial brings "AB:CD:…" into the form of issuer.FormatSerial; empty if it is none.
func serial(s string) string {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
	if !ok || n.Sign() <= 0 {
		return ""
	}
	return issuer.FormatSerial(n)
}

// colons gives a serial number as the API has it.
func colons(n *big.Int) string {
	hex := strings.ToUpper(n.Text(16))
	if len(hex)%2 == 1 {
		hex = "0" + hex
	}
	var out strings.Builder
	for k := 0; k < len(hex); k += 2 {
		if k > 0 {
			out.WriteByte(':')
		}
		out.WriteString(hex[k : k+2])
	}
	return out.String()
}

// parseDate reads the forms of dates that instances have; zero when it is none of them.
func parseDate(s string) time.Time {
	for _, layout := range []string{"01/02/2006", time.DateOnly, time.RFC3339, "01/02/2006 15:04:05", "2006-01-02 15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// plain brings the words for states, which differ in case, blanks and hyphens, into one form.
func plain(status string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		case r >= 'a' && r <= 'z':
			return r
		}
		return -1
	}, status)
}

package casimulator

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind says what goes wrong.
type Kind string

// The kinds of faults. "Before" is before the CA has done anything of what was asked, "after" is when it has done all.
const (
	// Delay and DelayAfter keep the client waiting for Fault.Delay.
	Delay      Kind = "delay"
	DelayAfter Kind = "delay_after"
	// Hang answers nothing until the client leaves, before anything was done.
	Hang Kind = "hang"
	// RateLimit is 429, with Retry-After in seconds or as a date (RetryAfter, RetryAfterDate) or without.
	RateLimit Kind = "rate_limit"
	// ServerError is Status, 500 by default, in the CA's own form; ServerErrorAfter is that with the work done.
	ServerError      Kind = "server_error"
	ServerErrorAfter Kind = "server_error_after"
	// ClientError is a refusal that passes: Status from 400 to 499, 400 by default, in the CA's own form, with Code instead
	// of the usual one where the form has a code.
	ClientError Kind = "client_error"
	// HTMLPage is a page of a proxy, with Status, 502 by default. HTMLPageAfter is that with the work done.
	HTMLPage      Kind = "html_page"
	HTMLPageAfter Kind = "html_page_after"
	// DropBefore and DropAfter cut the connection.
	DropBefore Kind = "drop_before"
	DropAfter  Kind = "drop_after"
	// ReplyTwice makes the same request, byte for byte, get the same reply again, and nothing is done twice. Requests
	// that only read are left alone.
	ReplyTwice Kind = "reply_twice"
	// DoubledReply sends the reply twice over the same connection.
	DoubledReply Kind = "doubled_reply"
	// SlowBytes sends the reply in pieces that take Delay in all, ten seconds by default.
	SlowBytes Kind = "slow_bytes"
	// OversizedBody sends Bytes bytes, 64 MiB by default.
	OversizedBody Kind = "oversized_body"
	// MalformedJSON cuts the body in its middle.
	MalformedJSON Kind = "malformed_json"
	// MTLSRefused fails TLS handshakes of clients that present a certificate, of every CA alike since the handshake comes
	// before any path, and requests on connections that are open already.
	MTLSRefused Kind = "mtls_refused"
	// TokenExpired makes the CA forget the session that the request relies on (GlobalSign).
	TokenExpired Kind = "token_expired"
	// Forgotten answers as if there were no such order. A list is empty; with Delay it only leaves out what is younger,
	// as lists do that are late (GlobalSign's statistics by some five seconds).
	Forgotten Kind = "forgotten"

	// These are decided when an order is accepted, and are then properties of the order.

	// IssueAfter sets the time from the acceptance, or the approval, to the certificate.
	IssueAfter Kind = "issue_after"
	// NeedsApproval holds the order until a human approves: over the control API, or after Delay if that is set.
	NeedsApproval Kind = "approval"
	// Reject refuses the order after Delay, for Reason.
	Reject Kind = "reject"
	// DuplicateOrder makes two orders of one request.
	DuplicateOrder Kind = "duplicate_order"

	// These are decided when the certificate is made, and then stay.

	WrongKey    Kind = "wrong_key"
	WrongName   Kind = "wrong_name"
	NotYetValid Kind = "not_yet_valid"

	// These are of an answer that shows the certificate.

	RootFirst           Kind = "root_first"
	MissingIntermediate Kind = "missing_intermediate"
	// WrongSerial states another serial number than the certificate has.
	WrongSerial Kind = "wrong_serial"
)

// Kinds are all of them.
func Kinds() []Kind {
	return []Kind{
		Delay, DelayAfter, Hang, RateLimit, ServerError, ServerErrorAfter, ClientError, HTMLPage, HTMLPageAfter, DropBefore, DropAfter,
		ReplyTwice, DoubledReply, SlowBytes, OversizedBody, MalformedJSON, MTLSRefused, TokenExpired, Forgotten,
		IssueAfter, NeedsApproval, Reject, DuplicateOrder, WrongKey, WrongName, NotYetValid,
		RootFirst, MissingIntermediate, WrongSerial,
	}
}

// Fault is one thing that goes wrong, and when it does.
type Fault struct {
	// CA and Operation say where; empty and "*" are everywhere.
	CA        string `yaml:"ca"`
	Operation string `yaml:"operation"`
	Kind      Kind   `yaml:"fault"`
	// CommonName and Order restrict it to requests about a certificate of that name, or about an order with that number
	// or client reference.
	CommonName string `yaml:"common_name"`
	Order      string `yaml:"order"`
	// Times is how often it happens; zero is without end.
	Times int `yaml:"times"`
	// Probability is between 0 and 1; zero is always.
	Probability float64 `yaml:"probability"`

	Delay          time.Duration `yaml:"delay"`
	Status         int           `yaml:"status"`
	Code           string        `yaml:"code"`
	RetryAfter     time.Duration `yaml:"retry_after"`
	RetryAfterDate bool          `yaml:"retry_after_date"`
	Reason         string        `yaml:"reason"`
	Bytes          int           `yaml:"bytes"`
}

// maxBytes bounds an oversized body.
const maxBytes = 1 << 30

func (f Fault) validate() error {
	switch {
	case !slices.Contains(Kinds(), f.Kind):
		return fmt.Errorf("fault %q: there is none; there are %s", f.Kind, join(Kinds()))
	case !anywhere(f.CA) && !slices.Contains(CAs(), f.CA):
		return fmt.Errorf("fault %s: there is no ca %q; there are %s", f.Kind, f.CA, strings.Join(CAs(), ", "))
	case !anywhere(f.Operation) && !slices.Contains(Operations(), f.Operation):
		return fmt.Errorf("fault %s: there is no operation %q; there are %s", f.Kind, f.Operation, strings.Join(Operations(), ", "))
	case f.Times < 0:
		return fmt.Errorf("fault %s: times is negative", f.Kind)
	case !(f.Probability >= 0 && f.Probability <= 1):
		return fmt.Errorf("fault %s: probability is not between 0 and 1", f.Kind)
	case f.Delay < 0 || f.RetryAfter < 0:
		return fmt.Errorf("fault %s: a duration is negative", f.Kind)
	case f.Code != "" && f.Kind != ClientError:
		return fmt.Errorf("fault %s: it has no code", f.Kind)
	case f.Code != "" && f.CA == Sectigo && !isNumber(f.Code):
		return fmt.Errorf("fault %s: code %q is no number, as those of %s are", f.Kind, f.Code, Sectigo)
	case f.Bytes < 0 || f.Bytes > maxBytes:
		return fmt.Errorf("fault %s: bytes is not between 0 and %d", f.Kind, maxBytes)
	}
	return f.validateStatus()
}

func (f Fault) validateStatus() error {
	low, high := 500, 599
	switch f.Kind {
	case HTMLPage, HTMLPageAfter:
		low = 200
	case ClientError:
		low, high = 400, 499
	case ServerError, ServerErrorAfter:
	default:
		if f.Status != 0 {
			return fmt.Errorf("fault %s: it has no status", f.Kind)
		}
	}
	if f.Status != 0 && (f.Status < low || f.Status > high) {
		return fmt.Errorf("fault %s: status is not between %d and %d", f.Kind, low, high)
	}
	return nil
}

// status is the one of the fault, or the usual one.
func (f Fault) status() int {
	switch {
	case f.Status != 0:
		return f.Status
	case f.Kind == HTMLPage || f.Kind == HTMLPageAfter:
		return 502
	case f.Kind == ClientError:
		return 400
	}
	return 500
}

func isNumber(text string) bool {
	_, err := strconv.Atoi(text)
	return err == nil
}

func anywhere(s string) bool { return s == "" || s == "*" }

func join(kinds []Kind) string {
	all := make([]string, len(kinds))
	for i, k := range kinds {
		all[i] = string(k)
	}
	return strings.Join(all, ", ")
}

// MarshalJSON writes a fault as a scenario has it.
func (f Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		CA             string  `json:"ca,omitempty"`
		Operation      string  `json:"operation,omitempty"`
		Kind           Kind    `json:"fault"`
		CommonName     string  `json:"common_name,omitempty"`
		Order          string  `json:"order,omitempty"`
		Times          int     `json:"times,omitempty"`
		Probability    float64 `json:"probability,omitempty"`
		Delay          string  `json:"delay,omitempty"`
		Status         int     `json:"status,omitempty"`
		Code           string  `json:"code,omitempty"`
		RetryAfter     string  `json:"retry_after,omitempty"`
		RetryAfterDate bool    `json:"retry_after_date,omitempty"`
		Reason         string  `json:"reason,omitempty"`
		Bytes          int     `json:"bytes,omitempty"`
	}{
		f.CA, f.Operation, f.Kind, f.CommonName, f.Order, f.Times, f.Probability, duration(f.Delay), f.Status, f.Code,
		duration(f.RetryAfter), f.RetryAfterDate, f.Reason, f.Bytes,
	})
}

func duration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

// subject is what a request is about, as far as a fault may ask.
type subject struct {
	commonName string
	order      string // number at the CA
	reference  string // the client's
}

// faultSet is the faults that are set, and how often each has happened.
type faultSet struct {
	mu     sync.Mutex
	faults []Fault
	used   []int
	random *rand.Rand
}

func newFaultSet() *faultSet { return &faultSet{random: seeded(0)} }

func seeded(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a schedule of faults has to be repeatable, not secret
}

func (s *faultSet) replace(faults []Fault, seed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = slices.Clone(faults)
	s.used = make([]int, len(faults))
	s.random = seeded(seed)
}

func (s *faultSet) list() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

func (s *faultSet) happened(k Kind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i, f := range s.faults {
		if f.Kind == k {
			n += s.used[i]
		}
	}
	return n
}

// take finds the first fault of one of the kinds that is due here, and counts it.
func (s *faultSet) take(ca, operation string, about subject, kinds ...Kind) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if !slices.Contains(kinds, f.Kind) || !f.matches(ca, operation, about) || f.Times > 0 && s.used[i] >= f.Times {
			continue
		}
		if f.Probability > 0 && s.random.Float64() >= f.Probability {
			continue
		}
		s.used[i]++
		return f, true
	}
	return Fault{}, false
}

func (f Fault) matches(ca, operation string, about subject) bool {
	return (anywhere(f.CA) || ca == "" || f.CA == ca) && (anywhere(f.Operation) || operation == "" || f.Operation == operation) &&
		(f.CommonName == "" || f.CommonName == about.commonName) &&
		(f.Order == "" || f.Order == about.order || f.Order == about.reference)
}

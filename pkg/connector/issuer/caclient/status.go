package caclient

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// StatusError is an answer that is not 2xx.
type StatusError struct {
	Status int
	// Code and Message are the CA's own, cleaned and clipped; empty when it gave none.
	Code    string
	Message string
	// RetryAfter is the CA's wish; zero if it has none.
	RetryAfter time.Duration
	// Foreign says that the body is nothing that the CA's API sends, such as an HTML page: the answer is probably that of
	// a proxy, a firewall or a maintenance page in front of it. An answer without a body is not foreign.
	Foreign bool
}

func (e *StatusError) Error() string {
	if e.Foreign {
		return fmt.Sprintf("HTTP %d with a body that is not the CA's", e.Status)
	}
	if e.words() == "" {
		return fmt.Sprintf("HTTP %d", e.Status)
	}
	return fmt.Sprintf("HTTP %d: %s", e.Status, e.words())
}

func (e *StatusError) words() string {
	switch {
	case e.Code == "":
		return e.Message
	case e.Message == "":
		return e.Code
	}
	return e.Message + " (" + e.Code + ")"
}

// Refused makes the permanent error of an answer, about the request.
func Refused(reason string, e *StatusError) error {
	return &issuer.PermanentError{
		Fault: issuer.FaultRequest, Reason: reason, Message: "the CA refuses the request: " + e.Error(), Cause: quiet{e},
	}
}

// Misconfigured makes the permanent error of an answer, about a setting: field, or none in particular if it is empty.
func Misconfigured(reason, field, message string, e *StatusError) error {
	return &issuer.PermanentError{
		Fault: issuer.FaultConfiguration, Reason: reason, Field: field, Message: message + ": " + e.Error(), Cause: quiet{e},
	}
}

// quiet keeps the answer in the chain of errors without saying it a second time.
type quiet struct{ answer *StatusError }

func (q quiet) Error() string { return fmt.Sprintf("status %d", q.answer.Status) }
func (q quiet) Unwrap() error { return q.answer }

// AsStatus finds the answer that an error comes from.
func AsStatus(err error) (*StatusError, bool) {
	var e *StatusError
	ok := errors.As(err, &e)
	return e, ok
}

// judge makes the error of an answer that is not 2xx.
func (c *Client) judge(r *Response, call Call) error {
	if r.Status >= 200 && r.Status < 300 {
		return nil
	}
	e := c.statusError(r)
	switch {
	case r.Status == http.StatusTooManyRequests || r.Status == http.StatusTooEarly:
		return issuer.RetryAfter(e.RetryAfter, e)
	case r.Status == http.StatusMovedPermanently || r.Status == http.StatusPermanentRedirect:
		return Misconfigured("CA_MOVED", c.cfg.BaseURLField, "the CA's API is at another address", e)
	case r.Status < 400 || r.Status >= 500 || r.Status == http.StatusRequestTimeout,
		e.Foreign && r.Status != http.StatusUnauthorized:
		return call.unanswered(e)
	}
	if err := c.mapped(e, call); err != nil {
		return err
	}
	if r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden {
		return Misconfigured("CA_CREDENTIALS_REFUSED", c.credentialField(call), "the CA refuses the credentials", e)
	}
	if !call.Changes { // a question has nothing that could be refused for good, and what is asked about may be paid for
		return issuer.RetryAfter(e.RetryAfter, e)
	}
	return Refused("CA_REFUSED", e)
}

// unanswered classes an answer that does not tell whether the CA acted.
func (call Call) unanswered(e *StatusError) error {
	if call.Changes {
		return call.lost(e)
	}
	return issuer.RetryAfter(e.RetryAfter, e)
}

func (c *Client) mapped(e *StatusError, call Call) error {
	for _, decide := range []func(*StatusError) error{call.Map, c.cfg.Map} {
		if decide == nil {
			continue
		}
		if err := decide(e); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) credentialField(call Call) string {
	if call.Field != "" {
		return call.Field
	}
	return c.cfg.CredentialField
}

func (c *Client) statusError(r *Response) *StatusError {
	e := &StatusError{Status: r.Status, RetryAfter: r.RetryAfter}
	if len(r.Body) == 0 && r.Header.Get("Content-Type") != "application/octet-stream" {
		return e
	}
	code, message, ok := "", "", false
	if isJSON(r) && !isHTML(r) {
		code, message, ok = c.cfg.ReadError(r.Body)
	}
	e.Code, e.Message, e.Foreign = clean(c.mask(code)), clean(c.mask(message)), !ok
	return e
}

// transportFailure makes the error of a request that got no answer.
func (c *Client) transportFailure(err error, call Call, connected bool) error {
	cause := &clippedError{doing: "call the CA", err: err}
	if refusedCertificate(err) {
		return &issuer.PermanentError{
			Fault: issuer.FaultConfiguration, Reason: "CLIENT_CERTIFICATE_REFUSED", Field: "client_cert_file",
			Message: "the CA refuses the client certificate", Cause: cause,
		}
	}
	if !connected {
		return issuer.RetryAfter(0, cause)
	}
	return call.lost(cause)
}

// refusedCertificate tells whether the server ended the handshake for our certificate's sake (RFC 8446, section 6.2). With
// TLS 1.3 that is seen only after the request was sent; a server that says so has not read it.
func refusedCertificate(err error) bool {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return false
	}
	// The type of alerts is not exported by crypto/tls; it is a number.
	alert := reflect.ValueOf(remote.Err)
	if alert.Kind() != reflect.Uint8 {
		return false
	}
	switch alert.Uint() {
	case 42, 43, 44, 45, 46, 48, 49, 116: // from bad_certificate to access_denied, and certificate_required
		return true
	}
	return false
}

// TestError makes of the error of a call in a connector's Test what helps to mend the settings: troubles that are transient
// elsewhere (a name that does not resolve, a certificate that nobody vouches for, HTML from something that is no CA) are
// told with the setting that they probably come from.
func (c *Client) TestError(err error) error {
	if broken := c.FilesError(); broken != nil {
		return broken
	}
	var untrusted *tls.CertificateVerificationError
	var unknown *net.DNSError
	answer, answered := AsStatus(err)
	switch {
	case errors.As(err, &untrusted):
		return misconfigured("CA_SERVER_NOT_TRUSTED", "ca_file", "the certificate of the CA's server is not trusted", err)
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return misconfigured("CA_NOT_FOUND", c.cfg.BaseURLField, "the CA's host name does not resolve", err)
	case answered && (answer.Foreign && answer.Status < 500 || answer.Status == http.StatusNotFound || answer.Status/100 == 3):
		return Misconfigured("CA_NOT_FOUND", c.cfg.BaseURLField, "there is no API of this CA at the address", answer)
	case answered && issuer.OutcomeOf(err) == issuer.OutcomeRetry && isRefusal(answer.Status):
		return Misconfigured("CA_REFUSED", "", "the CA refuses a question that it answers when the settings are right", answer)
	}
	return err
}

// isRefusal tells a 4xx that is about the request from those that only say "not now".
func isRefusal(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 400 && status < 500
}

// FilesError tells what is wrong with the files of the settings as they were at the last call: files that cannot be used
// leave those before in use, so that calls go on to succeed until the CA takes the old certificate no more. Nil: nothing is.
func (c *Client) FilesError() error { return c.dialler.failure() }

func misconfigured(reason, field, message string, cause error) error {
	return &issuer.PermanentError{Fault: issuer.FaultConfiguration, Reason: reason, Field: field, Message: message, Cause: cause}
}

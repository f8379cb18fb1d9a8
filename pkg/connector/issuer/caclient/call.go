package caclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

// Call describes one request.
type Call struct {
	Method string
	// Path is behind the base URL, by segments; each is escaped.
	Path  []string
	Query url.Values
	// Header is for fields beyond those that the client sets itself; a Content-Type here is used instead of its own.
	Header http.Header
	// Body is sent as JSON; nil: the request has none.
	Body any
	// Accept is the media type that is asked for; "application/json" if empty.
	Accept string
	// MaxBytes bounds the answer; MaxBody if zero.
	MaxBytes int64
	// Changes says that the CA acts on the request (submit, revoke, cancel), so that a lost reply is an unknown outcome.
	Changes bool
	// Ref is what is known of the order, for the error of an unknown outcome.
	Ref issuer.Ref
	// Field is the setting at fault when the CA refuses the credentials for this call; Config.CredentialField if empty.
	Field string
	// Map decides about a 4xx of the CA before Config.Map does.
	Map func(e *StatusError) error
	// Anonymous calls go without Config.Authorize, such as the one that logs in.
	Anonymous bool
}

// Response is an answer with a status of 2xx.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
	// RetryAfter is the CA's wish for the next question; zero if it has none.
	RetryAfter time.Duration
}

// JSON makes a call and decodes the answer, unless into is nil. An answer without a body, other than a 202 or 204 (which
// leave into as it is), of another media type than JSON, or with something behind the value is an error as if it was lost.
func (c *Client) JSON(ctx context.Context, call Call, into any) (*Response, error) {
	return c.do(ctx, call, func(r *Response) error {
		if into == nil || len(r.Body) == 0 && (r.Status == http.StatusAccepted || r.Status == http.StatusNoContent) {
			return nil
		}
		return decode(r, into)
	})
}

// Bytes makes a call and gives the answer as it is. An HTML page is an error as if the answer was lost.
func (c *Client) Bytes(ctx context.Context, call Call) (*Response, error) {
	return c.do(ctx, call, func(*Response) error { return nil })
}

// Unusable makes the error for an answer of 2xx that lacks what it must have, such as the order id: as if it was lost.
func (c *Client) Unusable(call Call, format string, a ...any) error {
	return call.lost(fmt.Errorf(format, a...))
}

// do makes a call; read judges an answer of 2xx before the account is told how the call went.
func (c *Client) do(ctx context.Context, call Call, read func(*Response) error) (*Response, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return nil, err
	}
	req, err := c.request(ctx, call)
	if err != nil {
		return nil, err
	}
	leave, err := c.guard.Enter(ctx)
	if err != nil {
		return nil, notAdmitted(err)
	}
	result := account.Result{Failed: true} // unless we come to know better
	defer func() { leave(result) }()
	resp, err := c.exchange(ctx, req, call)
	if err != nil {
		return nil, err
	}
	err = c.judge(resp, call)
	if resp.Status < 300 {
		err = readable(resp, read)
		if err != nil {
			err = call.lost(err)
		}
	}
	result = resultOf(resp, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// notAdmitted says that the guard let nothing through.
func notAdmitted(err error) error {
	var busy *account.BusyError
	if errors.As(err, &busy) {
		return issuer.RetryAfter(busy.After, err)
	}
	return &issuer.RetryError{Message: "nothing was sent to the CA", Cause: err}
}

// lost classes an answer that did not come or cannot be used.
func (call Call) lost(cause error) error {
	if call.Changes {
		return issuer.UnknownOutcome(maps.Clone(call.Ref), cause)
	}
	return issuer.RetryAfter(0, cause)
}

func (c *Client) request(ctx context.Context, call Call) (*http.Request, error) {
	u, err := c.address(call)
	if err != nil {
		return nil, err
	}
	var body io.Reader
	if call.Body != nil {
		raw, err := json.Marshal(call.Body)
		if err != nil {
			return nil, issuer.Permanent("REQUEST_NOT_ENCODABLE", "the request to the CA cannot be written as JSON: %v", err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, u.String(), body)
	if err != nil {
		return nil, issuer.Permanent("REQUEST_NOT_ENCODABLE", "the request to the CA cannot be made")
	}
	// Without GetBody net/http cannot send a body twice.
	req.GetBody = nil
	c.setHeader(req, call)
	if c.cfg.Authorize != nil && !call.Anonymous {
		if err := c.cfg.Authorize(ctx, req.Header); err != nil {
			return nil, err
		}
	}
	return req, nil
}

// address refuses segments that would change the path, as ids come from outside.
func (c *Client) address(call Call) (*url.URL, error) {
	u := *c.base
	var path strings.Builder
	path.WriteString(u.EscapedPath())
	for _, segment := range call.Path {
		if segment == "" || segment == "." || segment == ".." || len(segment) > 512 {
			return nil, issuer.Permanent("REFERENCE_INVALID", "%q cannot be part of an address of the CA", clean(segment))
		}
		path.WriteString("/" + url.PathEscape(segment))
	}
	u.RawPath = path.String()
	decoded, err := url.PathUnescape(u.RawPath)
	if err != nil {
		return nil, issuer.Permanent("REFERENCE_INVALID", "the address of the CA cannot be made")
	}
	u.Path, u.RawQuery = decoded, call.Query.Encode()
	return &u, nil
}

func (c *Client) setHeader(req *http.Request, call Call) {
	for name, values := range call.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	accept := call.Accept
	if accept == "" {
		accept = "application/json"
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", c.agent)
	if call.Body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
}

// exchange sends the request and reads the answer. Until a connection was there, nothing can have been sent: a change is
// given a new one each time, so that none is found dead only when it is used.
func (c *Client) exchange(ctx context.Context, req *http.Request, call Call) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	// RoundTrip follows no redirect, keeps no cookie and puts no URL into its errors.
	resp, err := c.dialler.transport(call.Changes).RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, c.transportFailure(err, call, connected.Load())
	}
	defer resp.Body.Close()
	limit := call.MaxBytes
	if limit <= 0 {
		limit = MaxBody
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	r := &Response{Status: resp.StatusCode, Header: resp.Header, Body: body, RetryAfter: retryAfter(resp.Header, c.now())}
	switch {
	case err != nil && resp.StatusCode < 300:
		return nil, c.transportFailure(err, call, true)
	case err != nil: // the status is known, the words are not
		r.Body = nil
		r.Header.Set("Content-Type", "application/octet-stream")
	case int64(len(body)) > limit && resp.StatusCode < 300:
		return nil, call.lost(fmt.Errorf("the answer has more than %d bytes", limit))
	case int64(len(body)) > limit:
		r.Body = body[:limit]
	}
	return r, nil
}

// readable judges an answer of 2xx.
func readable(r *Response, read func(*Response) error) error {
	if isHTML(r) {
		return fmt.Errorf("the answer (HTTP %d) is an HTML page", r.Status)
	}
	return read(r)
}

func resultOf(r *Response, err error) account.Result {
	switch {
	case r.Status == http.StatusTooManyRequests, r.Status == http.StatusServiceUnavailable && r.RetryAfter > 0:
		return account.Result{Throttled: true, RetryAfter: r.RetryAfter}
	case r.Status >= 500, r.Status < 300 && err != nil:
		return account.Result{Failed: true}
	}
	return account.Result{}
}

func decode(r *Response, into any) error {
	if !isJSON(r) {
		return fmt.Errorf("the answer (HTTP %d) is no JSON but %q", r.Status, clean(r.Header.Get("Content-Type")))
	}
	d := json.NewDecoder(bytes.NewReader(r.Body))
	if err := d.Decode(into); err != nil {
		// The text of the decoder may quote the answer.
		return &clippedError{doing: "read the answer of the CA as JSON", err: err}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value in the answer of the CA")
	}
	return nil
}

// isJSON goes by the media type; an answer without one is judged by the decoder alone.
func isJSON(r *Response) bool {
	header := r.Header.Get("Content-Type")
	if header == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(header)
	return err == nil && (media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json"))
}

func isHTML(r *Response) bool {
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if media == "text/html" || media == "application/xhtml+xml" {
		return true
	}
	start := bytes.ToLower(bytes.TrimSpace(r.Body[:min(len(r.Body), 256)]))
	return bytes.HasPrefix(start, []byte("<!doctype")) || bytes.HasPrefix(start, []byte("<html"))
}

// Package problem writes the one shape that errors have over HTTP: {"code":5,"message":"…","details":[…]}, a
// google.rpc.Status in JSON, with the HTTP status and the headers that belong to it.
package problem

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/certctl/certctl/pkg/errs"
)

// HTTP is an error whose HTTP status is not that of its kind. It reaches Write through errors.As.
type HTTP struct {
	Status int
	Err    *errs.Error
	// Allow are the verbs that the path has; for 405 (RFC 9110, section 15.5.6).
	Allow []string
}

// Error gives the text of the error.
func (h *HTTP) Error() string { return h.Err.Error() }

// Unwrap gives the error.
func (h *HTTP) Unwrap() error { return h.Err }

// NotFound is the answer for a path at which nothing is.
func NotFound(path string) error {
	return errs.New(errs.NotFound, "PATH_NOT_FOUND", "nothing is at %s", path)
}

// MethodNotAllowed is the answer for a verb that a path does not have.
func MethodNotAllowed(verb, path string, allow []string) error {
	return &HTTP{
		Status: http.StatusMethodNotAllowed, Allow: allow,
		Err: errs.New(errs.Unimplemented, "METHOD_NOT_ALLOWED", "%s has no %s; it has %s", path, verb, strings.Join(allow, ", ")),
	}
}

// BodyTooLarge is the answer for a body over the limit, in bytes.
func BodyTooLarge(limit int64) error {
	return &HTTP{
		Status: http.StatusRequestEntityTooLarge,
		Err:    errs.New(errs.Invalid, "BODY_TOO_LARGE", "the body is larger than %d bytes", limit),
	}
}

// MediaType is the answer for a body that is no JSON.
func MediaType(got string) error {
	return &HTTP{
		Status: http.StatusUnsupportedMediaType,
		Err:    errs.New(errs.Invalid, "MEDIA_TYPE_NOT_SUPPORTED", "the body is %q: send application/json", got),
	}
}

// Status gives the HTTP status of an error.
func Status(err error) int {
	var h *HTTP
	if errors.As(err, &h) {
		return h.Status
	}
	return errs.From(err).Kind().HTTPStatus()
}

// noter is a http.ResponseWriter that wants to know why a request was not answered as asked.
type noter interface{ NoteError(err error) }

// note tells the error to the innermost noter.
func note(w http.ResponseWriter, err error) {
	for {
		if n, ok := w.(noter); ok {
			n.NoteError(err)
			return
		}
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = outer.Unwrap()
	}
}

// Write answers an error.
func Write(w http.ResponseWriter, err error) {
	note(w, err)
	e := errs.From(err)
	h := w.Header()
	for _, name := range []string{"Content-Length", "ETag", "Location", "Trailer", "Transfer-Encoding"} {
		h.Del(name)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	body := body(e)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	setHeaders(h, err, e)
	w.WriteHeader(Status(err))
	_, _ = w.Write(body) // the client left; nobody is there to be told
}

func setHeaders(h http.Header, err error, e *errs.Error) {
	if after, ok := e.RetryDelay(); ok || e.Kind() == errs.ResourceExhausted {
		h.Set("Retry-After", seconds(after))
	}
	if e.Kind() == errs.Unauthenticated {
		h.Set("WWW-Authenticate", `Bearer realm="certctl"`)
	}
	var status *HTTP
	if errors.As(err, &status) && len(status.Allow) > 0 {
		h.Set("Allow", strings.Join(status.Allow, ", "))
	}
}

// seconds rounds up, and gives at least one: Retry-After has whole seconds (RFC 9110, section 10.2.3).
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

func body(e *errs.Error) []byte {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(e.GRPCStatus().Proto())
	if err != nil {
		return []byte(`{"code":13,"message":"internal error","details":[]}`)
	}
	return Compact(b)
}

// Compact removes the space that protojson puts in at random, so that equal messages have equal bytes in every replica
// and every build.
func Compact(b []byte) []byte {
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return b
	}
	return out.Bytes()
}

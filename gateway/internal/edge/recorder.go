package edge

import (
	"net/http"

	"github.com/certctl/certctl/pkg/rpcctx"
)

// recorder notes how a request was answered, for metrics and the log.
type recorder struct {
	http.ResponseWriter

	status int
	bytes  int64
	err    error
	route  string
	caller rpcctx.Caller
	quiet  bool
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err //nolint:wrapcheck // as http.ResponseWriter has it
}

// NoteError keeps why a request was not answered as asked, for the log.
func (r *recorder) NoteError(err error) { r.err = err }

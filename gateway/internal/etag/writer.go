package etag

import (
	"net/http"
	"slices"
	"strconv"
)

// writer keeps an answer back until it is complete, or larger than MaxBuffered: then all of it, and all that follows,
// goes through.
type writer struct {
	http.ResponseWriter

	status    int
	body      []byte
	streaming bool
}

func newWriter(w http.ResponseWriter) *writer { return &writer{ResponseWriter: w} }

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write keeps or sends. The first part it keeps as it is: grpc-gateway writes an answer at once, and does not use its memory again.
func (w *writer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if !w.streaming && len(w.body)+len(b) > MaxBuffered {
		if err := w.stream(); err != nil {
			return 0, err
		}
	}
	if w.streaming {
		return w.ResponseWriter.Write(b) //nolint:wrapcheck // as http.ResponseWriter has it
	}
	if w.body == nil {
		w.body = slices.Clip(b) // what is appended must not go into memory that is not ours
	} else {
		w.body = append(w.body, b...)
	}
	return len(b), nil
}

// FlushError sends what there is: who flushes does not want it kept back.
func (w *writer) FlushError() error {
	w.WriteHeader(http.StatusOK)
	if err := w.stream(); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush() //nolint:wrapcheck // as http.ResponseController has it
}

// Flush implements http.Flusher.
func (w *writer) Flush() { _ = w.FlushError() }

// stream begins to send.
func (w *writer) stream() error {
	if w.streaming {
		return nil
	}
	w.streaming = true
	w.ResponseWriter.WriteHeader(w.status)
	kept := w.body
	w.body = nil
	_, err := w.ResponseWriter.Write(kept)
	return err //nolint:wrapcheck // as http.ResponseWriter has it
}

// answer gives a complete answer; ok is false for one that has no tag.
func (w *writer) answer() (a answer, ok bool) {
	if w.streaming || w.status < 200 || w.status > 299 {
		return answer{}, false
	}
	return answer{tag: tagOf(w.body), contentType: w.Header().Get("Content-Type"), body: w.body}, true
}

// write sends a remembered answer.
func (a answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	setValidators(h, a.tag)
	_, _ = w.Write(a.body) // the client left; nobody is there to be told
}

// flush sends what was kept back.
func (w *writer) flush() {
	w.WriteHeader(http.StatusOK)
	_ = w.stream() // the client left; nobody is there to be told
}

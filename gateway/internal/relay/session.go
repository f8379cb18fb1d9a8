package relay

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/run"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// session is one agent's stream at its connection. The handler's goroutine reads. Nobody waits to write: who has something for the agent
// leaves it here, and it is written by a goroutine that lives as long as there is something.
type session struct {
	id                  uint64 // given by the line
	credential, address string
	first               []byte
	w                   http.ResponseWriter
	begun               bool

	mu       sync.Mutex
	written  *sync.Cond
	writing  bool
	welcomed bool
	queue    []*agentv1.ConnectResponse
	ended    bool
	end      error
	closed   bool
}

func newSession(w http.ResponseWriter) *session {
	s := &session{w: w}
	s.written = sync.NewCond(&s.mu)
	return s
}

func (s *session) control() *http.ResponseController { return http.NewResponseController(s.w) }

// begin sends the header at once: a stream can be silent for long.
func (s *session) begin() {
	s.begun = true
	s.w.Header().Set("Content-Type", "application/grpc")
	s.w.WriteHeader(http.StatusOK)
	_ = s.control().Flush() // what is wrong with the connection is seen by who reads
}

// hello reads the first message.
func (s *session) hello(body io.Reader) error {
	rc := s.control()
	_ = rc.SetReadDeadline(time.Now().Add(helloTimeout)) // HTTP/2 has it
	first, err := readMessage(body, maxHello)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.DeadlineExceeded, "HELLO_MISSING", "no hello came within %s", helloTimeout)
	case errors.Is(err, io.EOF):
		return errs.Field("hello", "must be the first message of a stream")
	case err != nil:
		return err
	}
	_ = rc.SetReadDeadline(time.Time{})
	s.first = first
	return nil
}

// deliver leaves messages for the agent, and the end after them. It does not block.
func (s *session) deliver(d *inventoryv1.AgentStreamDelivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ended {
		return
	}
	for _, m := range d.GetMessages() {
		s.put(m)
	}
	if d.GetEnded() {
		s.ended, s.end = true, statusError(d.GetStatus())
	}
	if !s.writing && (len(s.queue) > 0 || s.ended) {
		s.writing = true
		run.Go(func() error {
			s.write()
			return nil
		})
	}
}

// put queues a message. A stream that was opened again is welcomed again, which is no news to the agent; and of hints that it has not
// read yet the last says it all.
func (s *session) put(m *agentv1.ConnectResponse) {
	if m.GetWelcome() != nil {
		if s.welcomed {
			return
		}
		s.welcomed = true
	}
	if n := len(s.queue); n > 0 && m.GetWorkHint() != nil && s.queue[n-1].GetWorkHint() != nil {
		s.queue[n-1] = m
		return
	}
	s.queue = append(s.queue, m)
}

// write writes until there is nothing left; after the end it has the reader stop.
func (s *session) write() {
	for {
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		if len(queue) == 0 {
			if s.ended && !s.closed {
				_ = s.control().SetReadDeadline(time.Unix(1, 0)) // in the past
			}
			s.writing = false
			s.written.Broadcast()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, m := range queue {
			_, _ = s.w.Write(message(m)) // the reader sees that the connection is gone
		}
		_ = s.control().Flush()
	}
}

// ending tells whether the stream was ended from the server's side, and how.
func (s *session) ending() (ended bool, how error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended, s.end
}

// finish waits until nobody writes any more, and answers how the stream ended.
func (s *session) finish(err error) {
	s.mu.Lock()
	s.closed = true
	if s.writing {
		_ = s.control().SetWriteDeadline(time.Now().Add(time.Second)) // a client that reads nothing must not hold us
	}
	for s.writing {
		s.written.Wait()
	}
	s.mu.Unlock()
	if !s.begun {
		s.w.Header().Set("Content-Type", "application/grpc")
		s.w.WriteHeader(http.StatusOK)
	}
	header := s.w.Header()
	if err == nil {
		header.Set(http.TrailerPrefix+"Grpc-Status", "0")
		return
	}
	st := errs.From(err).GRPCStatus()
	header.Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(int(st.Code())))
	header.Set(http.TrailerPrefix+"Grpc-Message", percentEncoded(st.Message()))
	if details, err := proto.Marshal(st.Proto()); err == nil {
		header.Set(http.TrailerPrefix+"Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(details))
	}
}

// percentEncoded is how grpc-message is written (gRPC over HTTP2, "Status-Message").
func percentEncoded(message string) string {
	return strings.ReplaceAll(url.PathEscape(message), "%20", " ")
}

// The head of a message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-Message").
const headSize = 5

func message(m proto.Message) []byte {
	b, _ := proto.MarshalOptions{}.MarshalAppend(make([]byte, headSize), m) // it came over the wire as it is
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-headSize))
	return b
}

// head reads the length of the next message; io.EOF is the end between two.
func head(r io.Reader, limit int) (int, error) {
	var b [headSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err //nolint:wrapcheck // looked at by who calls
	}
	if b[0] != 0 {
		return 0, errs.New(errs.Unimplemented, "COMPRESSION_UNKNOWN", "messages of agents are not compressed")
	}
	n := int(binary.BigEndian.Uint32(b[1:]))
	if n > limit {
		return 0, errs.New(errs.ResourceExhausted, "MESSAGE_TOO_LARGE", "the message is larger than %d bytes", limit)
	}
	return n, nil
}

func readMessage(r io.Reader, limit int) ([]byte, error) {
	n, err := head(r, limit)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err //nolint:wrapcheck // looked at by who calls
}

func skipMessage(r *bufio.Reader, limit int) error {
	n, err := head(r, limit)
	if err != nil {
		return err
	}
	_, err = r.Discard(n)
	return err //nolint:wrapcheck // looked at by who calls
}

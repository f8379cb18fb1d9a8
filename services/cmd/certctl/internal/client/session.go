package client

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

const (
	// callTimeout bounds a call, unless the session has another limit.
	callTimeout = 30 * time.Second
	// maxRetryPause bounds the pause before the one repeat when the server says one; else it is two polls.
	maxRetryPause = 5 * time.Second
)

// session is one run of a command.
type session struct {
	cmd       *cobra.Command
	cfg       Config
	access    access
	format    show.Format
	conn      *grpc.ClientConn
	handshake *handshake
	// limit bounds each call.
	limit    time.Duration
	answered atomic.Bool
	// requestID is that of the last answer, under which the server's log has it.
	requestID atomic.Value

	// state is what is waited for, and resume how to go on waiting.
	state, resume string
	// quiet has the states not told.
	quiet bool
}

func (a *app) open(c *cobra.Command) (*session, error) {
	text, err := c.Flags().GetString(flagOutput)
	if err != nil {
		return nil, usage(err.Error())
	}
	format, err := show.ParseFormat(text)
	if err != nil {
		return nil, usage(err.Error())
	}
	ac, err := a.access(c)
	if err != nil {
		return nil, err
	}
	s := &session{cmd: c, cfg: a.cfg, access: ac, format: format, handshake: &handshake{}, limit: callTimeout}
	if s.conn, err = s.dial(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) close() { _ = s.conn.Close() }

// out is where results go.
func (s *session) out() io.Writer { return s.cmd.OutOrStdout() }

// note tells the user something that is not the result.
func (s *session) note(format string, a ...any) {
	_, _ = fmt.Fprintln(s.cmd.ErrOrStderr(), show.Clean(fmt.Sprintf(format, a...)))
}

func (s *session) printer() show.Printer {
	return show.Printer{Out: s.out(), Format: s.format, Now: s.cfg.Now()}
}

// print shows one message: as a row of its table if it has one, else with its fields.
func (s *session) print(m proto.Message) error {
	if columns := columnsOf(m); columns != nil {
		return s.printer().Rows(m, []proto.Message{m}, columns)
	}
	return s.printer().Describe(m)
}

// describe shows one message with its fields.
func (s *session) describe(m proto.Message) error { return s.printer().Describe(m) }

// spoke tells whether the gateway has answered anything, be it an error of its own.
func (s *session) spoke() bool { return s.answered.Load() }

// intercept gives every call a time limit and notes whether the gateway answered.
func (s *session) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	var answer responded
	err := invoke(ctx, method, req, reply, cc, append(opts, grpc.Header(&answer.header), grpc.Trailer(&answer.trailer))...)
	if err == nil || answer.any() {
		s.answered.Store(true)
		s.requestID.Store(answer.first("x-request-id"))
	}
	return err
}

// call makes a call. A request with a request_id gets a random one, and is repeated once, with the same, when the gateway or
// a service behind it was away.
func (s *session) call(ctx context.Context, m method, req proto.Message) (proto.Message, error) {
	identify(req)
	resp, err := m.call(ctx, s.conn, req)
	if !errs.IsKind(err, errs.Unavailable) || !identified(req) || s.handshake.last() != nil {
		return resp, err
	}
	pause := 2 * s.cfg.Poll
	if d, ok := errs.From(err).RetryDelay(); ok {
		pause = min(d, maxRetryPause)
	}
	if err := tick.Wait(ctx, pause); err != nil {
		return nil, err
	}
	return m.call(ctx, s.conn, req)
}

func requestID(req proto.Message) protoreflect.FieldDescriptor {
	// The audit log's filter has the name too; it is the one request that is a read.
	if req.ProtoReflect().Descriptor().Fields().ByName("page_token") != nil {
		return nil
	}
	return req.ProtoReflect().Descriptor().Fields().ByName("request_id")
}

func identify(req proto.Message) {
	if fd := requestID(req); fd != nil {
		req.ProtoReflect().Set(fd, protoreflect.ValueOfString(uuid.NewString()))
	}
}

func identified(req proto.Message) bool { return requestID(req) != nil }

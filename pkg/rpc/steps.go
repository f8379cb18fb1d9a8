package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
)

// requestID takes over a sane request id or makes one, and sends it back as a header.
func requestID(ctx context.Context, _ call, next func(context.Context) error) error {
	id, err := incomingRequestID(ctx)
	if err != nil {
		return errs.From(err) // this step is outside of the mask
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(MetadataRequestID, id)); err != nil {
		return errs.From(fmt.Errorf("send request id: %w", err))
	}
	return next(rpcctx.WithRequestID(ctx, id))
}

func incomingRequestID(ctx context.Context) (string, error) {
	if ids := metadata.ValueFromIncomingContext(ctx, MetadataRequestID); len(ids) > 0 && rpcctx.ValidRequestID(ids[0]) {
		return ids[0], nil
	}
	return newRequestID()
}

func newRequestID() (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make request id: %w", err)
	}
	return id.String(), nil
}

// facts gathers log fields that inner steps find out and the call log, which is further out, writes. It is used by
// the goroutine of the call alone.
type facts struct{ fields []zap.Field }

type factsKey struct{}

// noteFields adds to what the call log writes.
func noteFields(ctx context.Context, fields ...zap.Field) {
	if f, ok := ctx.Value(factsKey{}).(*facts); ok {
		f.fields = append(f.fields, fields...)
	}
}

// logger puts the call's logger into the context. Most calls log nothing: the fields are encoded by those that do.
func (s *Server) logger(ctx context.Context, c call, next func(context.Context) error) error {
	log := s.deps.Logger.WithLazy(logx.RequestID(rpcctx.RequestID(ctx)), logx.Method(c.method))
	return next(context.WithValue(rpcctx.WithLogger(ctx, log), factsKey{}, &facts{}))
}

// mask lets only what may be shown of an error leave the server.
func mask(ctx context.Context, _ call, next func(context.Context) error) error {
	if err := next(ctx); err != nil {
		return errs.From(err).GRPCStatus().Err()
	}
	return nil
}

// callLog writes one line per call, with the error and its causes, under the code that the caller gets.
func (s *Server) callLog(ctx context.Context, _ call, next func(context.Context) error) error {
	start := time.Now()
	err := next(ctx)
	if err != nil && s.deps.Explain != nil {
		err = s.deps.Explain(err)
	}
	log := rpcctx.Logger(ctx)
	if entry := log.Check(callLevel(err), callMessage(err)); entry != nil {
		entry.Write(callFields(ctx, err, time.Since(start))...)
	}
	return err
}

func callMessage(err error) string {
	if err != nil {
		return "call failed"
	}
	return "call done"
}

func callFields(ctx context.Context, err error, took time.Duration) []zap.Field {
	fields := []zap.Field{logx.Code(errs.KindOf(err).Code().String()), logx.Duration(took)}
	if p, ok := peer.FromContext(ctx); ok {
		fields = append(fields, logx.Peer(p.Addr.String()))
	}
	if f, ok := ctx.Value(factsKey{}).(*facts); ok {
		fields = append(fields, f.fields...)
	}
	if err != nil {
		fields = append(fields, logx.Reason(errs.ReasonOf(err)), logx.Error(err))
	}
	var p *run.PanicError
	if errors.As(err, &p) {
		fields = append(fields, logx.Stack(p.Stack))
	}
	return fields
}

// callLevel tells how much an operator wants to know of a call. An error that hides a cause is always written: the
// caller cannot report it.
func callLevel(err error) zapcore.Level {
	switch e := errs.From(err); errs.KindOf(err) {
	case errs.None, errs.Canceled:
		return zapcore.DebugLevel
	case errs.Internal:
		return zapcore.ErrorLevel
	case errs.Unavailable, errs.DeadlineExceeded:
		return zapcore.WarnLevel
	case errs.Unauthenticated, errs.PermissionDenied, errs.ResourceExhausted:
		return zapcore.InfoLevel
	case errs.Invalid, errs.NotFound, errs.AlreadyExists, errs.Conflict, errs.PreconditionFailed, errs.Unimplemented:
		if e.Unwrap() != nil {
			return zapcore.InfoLevel
		}
		return zapcore.DebugLevel
	default:
		return zapcore.ErrorLevel
	}
}

// deadline bounds how long a call may take here, whatever the client asked for. Long-lived streams have no bound;
// the drain of the server knows them apart.
func (s *Server) deadline(ctx context.Context, c call, next func(context.Context) error) error {
	if s.longLived[c.method] {
		return next(ctx)
	}
	s.inFlight.enter()
	defer s.inFlight.leave()
	limit := s.cfg.UnaryTimeout
	if c.stream {
		limit = s.cfg.StreamTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return next(ctx)
}

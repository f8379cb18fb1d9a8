package rpcctx

import (
	"context"

	"go.uber.org/zap"
)

type requestIDKey struct{}

// WithRequestID notes the id that ties together all that one request of a user causes.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID gives the request id, and "" outside of a call.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// maxRequestID bounds the request ids that are taken over from outside.
const maxRequestID = 128

// ValidRequestID tells whether an id from outside may be kept: 1 to 128 letters, digits, '-', '_', '.', ':'. Anything
// else could forge log lines or headers.
func ValidRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		if !validRequestIDByte(id[i]) {
			return false
		}
	}
	return true
}

func validRequestIDByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' ||
		b == '-' || b == '_' || b == '.' || b == ':'
}

type loggerKey struct{}

// WithLogger notes the logger of the call, which carries request id, method and caller.
func WithLogger(ctx context.Context, l *zap.Logger) context.Context {
	return context.WithValue(ctx, loggerKey{}, l)
}

// Logger gives the logger of the call, and one that drops everything when there is none.
func Logger(ctx context.Context) *zap.Logger {
	if l, ok := ctx.Value(loggerKey{}).(*zap.Logger); ok {
		return l
	}
	return zap.NewNop()
}

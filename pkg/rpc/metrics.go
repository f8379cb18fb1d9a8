package rpc

import (
	"context"
	"fmt"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// ClientMetrics counts the calls of all clients of a service; one is shared by its connections.
type ClientMetrics = grpcprom.ClientMetrics

// NewClientMetrics makes and registers the metrics of a service's clients.
func NewClientMetrics(reg prometheus.Registerer) (*ClientMetrics, error) {
	m := grpcprom.NewClientMetrics(grpcprom.WithClientHandlingTimeHistogram(
		grpcprom.WithHistogramBuckets(latencyBuckets())))
	if err := reg.Register(m); err != nil {
		return nil, fmt.Errorf("register client metrics: %w", err)
	}
	return m, nil
}

// serverMetrics counts the calls of a server. Methods that are not in the table have no metrics: their names are
// the client's choice, and would fill the registry.
type serverMetrics struct {
	server *grpcprom.ServerMetrics
	table  AuthzTable
}

func newServerMetrics(reg prometheus.Registerer, table AuthzTable) (*serverMetrics, error) {
	m := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(
		grpcprom.WithHistogramBuckets(latencyBuckets())))
	if err := reg.Register(m); err != nil {
		return nil, fmt.Errorf("register server metrics: %w", err)
	}
	return &serverMetrics{server: m, table: table}, nil
}

// latencyBuckets span an indexed read and a slow CA, in seconds.
func latencyBuckets() []float64 {
	return []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

func (m *serverMetrics) step() step {
	unary, stream := m.server.UnaryServerInterceptor(), m.server.StreamServerInterceptor()
	return step{
		name: stepMetrics,
		unary: func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if _, ok := m.table[info.FullMethod]; !ok {
				return handler(ctx, req)
			}
			return unary(ctx, req, info, handler)
		},
		stream: func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if _, ok := m.table[info.FullMethod]; !ok {
				return handler(srv, ss)
			}
			return stream(srv, ss, info, handler)
		},
	}
}

package serve

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/pkg/health"
	"github.com/certctl/certctl/pkg/run"
)

// Liveness is the name under which the probes' listener tells that the process answers, whatever else is wrong. A service that
// waits for its database is alive: starting it again helps nobody.
const Liveness = "liveness"

// probe is grpc.health.v1 for probes that speak neither TLS nor tokens, such as kubelet's. It tells nothing but SERVING or not,
// and does so before the service itself can start.
type probe struct {
	grpc_health_v1.UnimplementedHealthServer

	health atomic.Pointer[health.Health] // nil until the service serves
}

// Check implements grpc_health_v1.HealthServer.
func (p *probe) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	answer := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}
	switch r.GetService() {
	case Liveness:
		answer.Status = grpc_health_v1.HealthCheckResponse_SERVING
	case "":
		if h := p.health.Load(); h != nil {
			return h.GRPC().Check(ctx, r)
		}
	default:
		return nil, status.Errorf(codes.NotFound, "there are the services \"\" (readiness) and %q", Liveness)
	}
	return answer, nil
}

// startProbe serves the probe, if it has an address.
func (p *process) startProbe(g *run.Group) error {
	if p.cfg.Process.HealthAddr == "" {
		return nil
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(g.Context(), "tcp", p.cfg.Process.HealthAddr)
	if err != nil {
		return fmt.Errorf("listen for probes (CERTCTL_HEALTH_LISTEN_ADDR): %w", err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(probeMaxMessage), grpc.MaxConcurrentStreams(probeMaxStreams))
	grpc_health_v1.RegisterHealthServer(server, &p.probe)
	g.Go("probe", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		return server.Serve(lis)
	})
	return nil
}

// The bounds of what a probe may ask.
const (
	probeMaxMessage = 4 << 10
	probeMaxStreams = 16
)

// Package api has the gRPC services of inventory: they authenticate agents, hold their streams, and hand everything
// else to core.
package api

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/core"
	"github.com/certctl/certctl/services/inventory/internal/hub"
)

// Config holds the times of agents' streams.
type Config struct {
	ServerVersion     string
	HeartbeatInterval time.Duration
	// StreamLifetime is that of Connect and of Relay.
	StreamLifetime time.Duration
}

// Deps are what the services work with.
type Deps struct {
	Core      *core.Core
	Hub       *hub.Hub
	Log       *zap.Logger
	Events    eventv1.EventSinkServiceServer
	Revisions eventv1.RevisionServiceServer
}

// API is all gRPC services of inventory.
type API struct {
	cfg  Config
	deps Deps
}

// New makes the services.
func New(cfg Config, deps Deps) *API { return &API{cfg: cfg, deps: deps} }

// Register puts the services on a server.
func (a *API) Register(s grpc.ServiceRegistrar) {
	inventoryv1.RegisterCertificateServiceServer(s, &certificates{Core: a.deps.Core})
	inventoryv1.RegisterTargetServiceServer(s, &targets{Core: a.deps.Core})
	inventoryv1.RegisterDeploymentServiceServer(s, &deployments{Core: a.deps.Core})
	inventoryv1.RegisterAgentRegistryServiceServer(s, &registry{Core: a.deps.Core})
	inventoryv1.RegisterDiscoveryServiceServer(s, &discovery{Core: a.deps.Core})
	inventoryv1.RegisterStatsServiceServer(s, &stats{core: a.deps.Core})
	inventoryv1.RegisterInventoryInternalServiceServer(s, &internal{Core: a.deps.Core})
	agents := &agents{cfg: a.cfg, core: a.deps.Core, hub: a.deps.Hub, log: a.deps.Log}
	agentv1.RegisterAgentServiceServer(s, agents)
	inventoryv1.RegisterAgentRelayServiceServer(s, &relays{agents: agents})
	eventv1.RegisterEventSinkServiceServer(s, a.deps.Events)
	eventv1.RegisterRevisionServiceServer(s, a.deps.Revisions)
}

// Table says who may call what. Agents come through the gateway without a caller of their own: what they may do is
// decided by their credential.
func Table() rpc.AuthzTable {
	t := rpc.AuthzTable{}
	read := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor)
	write := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator)
	peer := rpc.Allow(rpcctx.RolePeer)
	agent := rpc.Allow(rpcctx.RoleNone, rpcctx.RoleAgent)
	for _, g := range []struct {
		desc grpc.ServiceDesc
		rule rpc.Rule
		// other has the methods that differ from the rule.
		other map[string]rpc.Rule
	}{
		{inventoryv1.CertificateService_ServiceDesc, read, map[string]rpc.Rule{
			"CreateCertificate": write, "UpdateCertificate": write, "DeleteCertificate": write, "RevokeCertificate": write,
		}},
		{inventoryv1.TargetService_ServiceDesc, read, map[string]rpc.Rule{"CreateTarget": write, "UpdateTarget": write, "DeleteTarget": write}},
		{inventoryv1.DeploymentService_ServiceDesc, read, nil},
		{inventoryv1.AgentRegistryService_ServiceDesc, write, map[string]rpc.Rule{"ListAgents": read, "GetAgent": read}},
		{inventoryv1.DiscoveryService_ServiceDesc, read, nil},
		{inventoryv1.StatsService_ServiceDesc, read, nil},
		{inventoryv1.InventoryInternalService_ServiceDesc, peer, nil},
		{inventoryv1.AgentRelayService_ServiceDesc, peer, nil},
		{eventv1.EventSinkService_ServiceDesc, peer, nil},
		{eventv1.RevisionService_ServiceDesc, rpc.Allow(append(peer.Roles, read.Roles...)...), nil},
		{agentv1.AgentService_ServiceDesc, agent, nil},
	} {
		for _, m := range methodsOf(g.desc) {
			rule, ok := g.other[m]
			if !ok {
				rule = g.rule
			}
			t["/"+g.desc.ServiceName+"/"+m] = rule
		}
	}
	return t
}

func methodsOf(d grpc.ServiceDesc) []string {
	var out []string
	for _, m := range d.Methods {
		out = append(out, m.MethodName)
	}
	for _, s := range d.Streams {
		out = append(out, s.StreamName)
	}
	return out
}

// The services whose requests and answers core takes as they are.
type (
	certificates struct {
		*core.Core
		inventoryv1.UnsafeCertificateServiceServer
	}
	targets struct {
		*core.Core
		inventoryv1.UnsafeTargetServiceServer
	}
	deployments struct {
		*core.Core
		inventoryv1.UnsafeDeploymentServiceServer
	}
	registry struct {
		*core.Core
		inventoryv1.UnsafeAgentRegistryServiceServer
	}
	discovery struct {
		*core.Core
		inventoryv1.UnsafeDiscoveryServiceServer
	}
	internal struct {
		*core.Core
		inventoryv1.UnsafeInventoryInternalServiceServer
	}
)

// pemType is the media type of RFC 8555, section 9.1's certificate chains as files of PEM.
const pemType = "application/x-pem-file"

// DownloadCertificateVersion answers leaf and chain as PEM.
func (s *certificates) DownloadCertificateVersion(ctx context.Context, r *inventoryv1.DownloadCertificateVersionRequest) (*httpbody.HttpBody, error) {
	b, err := s.CertificatePEM(ctx, r.GetCertificateId(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	return &httpbody.HttpBody{ContentType: pemType, Data: b}, nil
}

type stats struct {
	inventoryv1.UnimplementedStatsServiceServer
	core *core.Core
}

// GetSummary answers counts by status.
func (s *stats) GetSummary(ctx context.Context, _ *inventoryv1.GetSummaryRequest) (*inventoryv1.GetSummaryResponse, error) {
	return s.core.GetSummary(ctx)
}

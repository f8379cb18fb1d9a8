package route

import (
	"net/http"
	"regexp"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

// The names of the services behind the gateway.
const (
	Inventory        = "inventory"
	Issuance         = "issuance"
	RenewalScheduler = "renewalscheduler"
	AsyncPoller      = "asyncpoller"
	Audit            = "audit"
)

// AgentService is the one service that agents call; its callers show an agent's credential and no API key.
const AgentService = "certctl.agent.v1.AgentService"

// RPC is one method that may be called from outside.
type RPC struct {
	// Method is the full name, such as "/certctl.inventory.v1.CertificateService/GetCertificate".
	Method string
	// Backend is the name of the service behind.
	Backend string
	// Input describes the request.
	Input protoreflect.MessageDescriptor
	// Name is the last part of Method.
	Name string
	// Body is the field of Input that an HTTP body fills: "" none, "*" the whole message.
	Body string
	// PathFields are the fields of Input that the path fills.
	PathFields []string
	// Agent tells that agents call it, not users.
	Agent bool
	// Streaming tells that either side sends a stream.
	Streaming bool
}

// exposed lists the services by backend. Services that are not here (…InternalService, EventSinkService,
// RevisionService) are for peers, who do not come through the gateway.
func exposed() map[string][]protoreflect.ServiceDescriptor {
	certificate := inventoryv1.File_certctl_inventory_v1_certificate_proto.Services()
	agents := inventoryv1.File_certctl_inventory_v1_agent_proto.Services()
	discovery := inventoryv1.File_certctl_inventory_v1_discovery_proto.Services()
	target := inventoryv1.File_certctl_inventory_v1_target_proto.Services()
	issuer := issuancev1.File_certctl_issuance_v1_issuer_proto.Services()
	return map[string][]protoreflect.ServiceDescriptor{
		Inventory: {
			certificate.ByName("CertificateService"), agents.ByName("AgentRegistryService"),
			discovery.ByName("DiscoveryService"), discovery.ByName("StatsService"),
			target.ByName("TargetService"), target.ByName("DeploymentService"),
			agentv1.File_certctl_agent_v1_agent_proto.Services().ByName("AgentService"),
		},
		Issuance: {
			issuer.ByName("IssuerService"), issuer.ByName("CrlService"), issuer.ByName("ProfileService"),
			issuancev1.File_certctl_issuance_v1_order_proto.Services().ByName("OrderService"),
		},
		RenewalScheduler: {
			schedulerv1.File_certctl_renewalscheduler_v1_job_proto.Services().ByName("JobService"),
			schedulerv1.File_certctl_renewalscheduler_v1_policy_proto.Services().ByName("PolicyService"),
		},
		Audit: {auditv1.File_certctl_audit_v1_audit_proto.Services().ByName("AuditService")},
	}
}

// Methods gives every method that may be called over gRPC, by full name.
func Methods() map[string]*RPC {
	methods := make(map[string]*RPC)
	for backend, services := range exposed() {
		for _, service := range services {
			for i := range service.Methods().Len() {
				m := newRPC(backend, service.Methods().Get(i))
				methods[m.Method] = m
			}
		}
	}
	return methods
}

func newRPC(backend string, md protoreflect.MethodDescriptor) *RPC {
	service := md.Parent().FullName()
	return &RPC{
		Method:    "/" + string(service) + "/" + string(md.Name()),
		Backend:   backend,
		Input:     md.Input(),
		Name:      string(md.Name()),
		Agent:     service == AgentService,
		Streaming: md.IsStreamingClient() || md.IsStreamingServer(),
	}
}

// REST gives the routes of the HTTP rules.
func REST() []*Route {
	var routes []*Route
	for backend, services := range exposed() {
		for _, service := range services {
			for i := range service.Methods().Len() {
				if r := restRoute(backend, service.Methods().Get(i)); r != nil {
					routes = append(routes, r)
				}
			}
		}
	}
	return routes
}

var variable = regexp.MustCompile(`\{([^}=]+)\}`)

func restRoute(backend string, md protoreflect.MethodDescriptor) *Route {
	rule, _ := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
	verb, pattern := verbOf(rule)
	if verb == "" {
		return nil
	}
	rpc := newRPC(backend, md)
	rpc.Body = rule.GetBody()
	for _, m := range variable.FindAllStringSubmatch(pattern, -1) {
		rpc.PathFields = append(rpc.PathFields, m[1])
	}
	return &Route{Verb: verb, Pattern: pattern, RPC: rpc}
}

func verbOf(rule *annotations.HttpRule) (verb, pattern string) {
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		return http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		return http.MethodPut, p.Put
	case *annotations.HttpRule_Patch:
		return http.MethodPatch, p.Patch
	case *annotations.HttpRule_Delete:
		return http.MethodDelete, p.Delete
	default:
		return "", ""
	}
}

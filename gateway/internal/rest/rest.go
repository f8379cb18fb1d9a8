// Package rest translates HTTP requests with JSON into gRPC calls. grpc-gateway does the translation; this package is
// strict before it (unknown parameters and fields, types, sizes), lets nothing through that is not named here, and gives
// errors their one shape.
package rest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/gateway/internal/crl"
	"github.com/certctl/certctl/gateway/internal/etag"
	"github.com/certctl/certctl/gateway/internal/problem"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

// Config sets up a Handler.
type Config struct {
	// MaxBody bounds a body, in bytes.
	MaxBody int64
	// Timeout bounds a call.
	Timeout time.Duration
}

// Deps is what a Handler works with.
type Deps struct {
	// Backends are the connections by the name of the service.
	Backends map[string]grpc.ClientConnInterface
	// Tags answers lists that have not changed.
	Tags *etag.Cache
}

// Handler serves the routes that are projections of RPCs.
type Handler struct {
	cfg  Config
	deps Deps
	mux  *runtime.ServeMux
	crls crl.Handler
}

// New makes a handler.
func New(cfg Config, deps Deps) (*Handler, error) {
	h := &Handler{cfg: cfg, deps: deps, crls: crl.Handler{Client: issuancev1.NewCrlServiceClient(deps.Backends[route.Issuance]), Timeout: cfg.Timeout}}
	h.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, newMarshaler()),
		runtime.WithIncomingHeaderMatcher(incoming),
		runtime.WithOutgoingHeaderMatcher(outgoing),
		runtime.WithOutgoingTrailerMatcher(outgoing),
		runtime.WithErrorHandler(writeError),
		runtime.WithRoutingErrorHandler(writeRoutingError),
		runtime.WithForwardResponseOption(created),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)
	return h, h.register()
}

// register connects the mux with the services behind, over connections and never in process: the interceptors must see
// every call.
func (h *Handler) register() error {
	ctx, mux := context.Background(), h.mux //nolint:forbidigo // the generated functions take a context and do not use it
	inventory, issuance := unread{gather(h.deps.Backends[route.Inventory])}, unread{h.deps.Backends[route.Issuance]}
	scheduler, audit := unread{h.deps.Backends[route.RenewalScheduler]}, unread{h.deps.Backends[route.Audit]}
	for _, err := range []error{
		inventoryv1.RegisterCertificateServiceHandlerClient(ctx, mux, inventoryv1.NewCertificateServiceClient(inventory)),
		inventoryv1.RegisterAgentRegistryServiceHandlerClient(ctx, mux, inventoryv1.NewAgentRegistryServiceClient(inventory)),
		inventoryv1.RegisterDiscoveryServiceHandlerClient(ctx, mux, inventoryv1.NewDiscoveryServiceClient(inventory)),
		inventoryv1.RegisterStatsServiceHandlerClient(ctx, mux, inventoryv1.NewStatsServiceClient(inventory)),
		inventoryv1.RegisterTargetServiceHandlerClient(ctx, mux, inventoryv1.NewTargetServiceClient(inventory)),
		inventoryv1.RegisterDeploymentServiceHandlerClient(ctx, mux, inventoryv1.NewDeploymentServiceClient(inventory)),
		issuancev1.RegisterIssuerServiceHandlerClient(ctx, mux, issuancev1.NewIssuerServiceClient(issuance)),
		issuancev1.RegisterCrlServiceHandlerClient(ctx, mux, issuancev1.NewCrlServiceClient(issuance)),
		issuancev1.RegisterProfileServiceHandlerClient(ctx, mux, issuancev1.NewProfileServiceClient(issuance)),
		issuancev1.RegisterOrderServiceHandlerClient(ctx, mux, issuancev1.NewOrderServiceClient(issuance)),
		schedulerv1.RegisterJobServiceHandlerClient(ctx, mux, schedulerv1.NewJobServiceClient(scheduler)),
		schedulerv1.RegisterPolicyServiceHandlerClient(ctx, mux, schedulerv1.NewPolicyServiceClient(scheduler)),
		auditv1.RegisterAuditServiceHandlerClient(ctx, mux, auditv1.NewAuditServiceClient(audit)),
	} {
		if err != nil {
			return fmt.Errorf("register REST handlers: %w", err)
		}
	}
	return nil
}

// Serve answers a request that was matched to a route; its context has the verified caller.
func (h *Handler) Serve(w http.ResponseWriter, r *http.Request, rt *route.Route) {
	inner, err := h.translate(r, rt)
	if err != nil {
		problem.Write(w, err)
		return
	}
	if rt.RPC.Method == issuancev1.CrlService_GetCrl_FullMethodName {
		if err := h.crls.Serve(w, r, path.Base(path.Dir(inner.URL.Path)), "private, no-cache"); err != nil {
			problem.Write(w, err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(inner.Context(), h.cfg.Timeout)
	defer cancel()
	inner = inner.WithContext(ctx)
	list, ok := h.deps.Tags.ListOf(rt.Pattern)
	if !ok || inner.Method != http.MethodGet {
		h.mux.ServeHTTP(w, inner)
		return
	}
	h.deps.Tags.Serve(w, etag.Request{
		List:        list,
		Scope:       scope(rpcctx.CallerFrom(ctx)),
		URL:         inner.URL.RequestURI(),
		IfNoneMatch: r.Header.Values("If-None-Match"),
		HTTP:        inner,
	}, h.mux)
}

// scope separates what different callers are shown.
func scope(c rpcctx.Caller) string { return string(c.Role) + " " + c.String() }

// translate checks a request and makes the one that grpc-gateway sees. That is built from nothing: path, checked
// parameters, checked body, and the headers of the allow-list. So no header of the client can become metadata.
func (h *Handler) translate(r *http.Request, rt *route.Route) (*http.Request, error) {
	if err := checkPath(rt.RPC, rt.Pattern, r.URL.Path); err != nil {
		return nil, err
	}
	path, rawQuery, err := format(r.URL, rt.RPC)
	if err != nil {
		return nil, err
	}
	header, err := allowed(r.Header)
	if err != nil {
		return nil, err
	}
	params, err := query(rt.RPC, rawQuery)
	if err != nil {
		return nil, err
	}
	body, err := readBody(r, h.cfg.MaxBody)
	if err != nil {
		return nil, err
	}
	if err := checkBodyOf(r, rt, body, params); err != nil {
		return nil, err
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves the body of the answer out
	}
	ctx := withBodyField(r.Context(), rt.RPC.Body)
	inner := &http.Request{
		Method: method, Header: header, Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
		URL:  &url.URL{Path: path, RawQuery: params.Encode()},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
	return inner.WithContext(ctx), nil
}

func checkBodyOf(r *http.Request, rt *route.Route, body []byte, params url.Values) error {
	if len(body) > 0 && rt.RPC.Body != "" {
		if err := checkMediaType(r.Header); err != nil {
			return err
		}
	}
	fields, err := checkBody(rt.RPC, body)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPatch || params.Get(maskField) != "" {
		return nil
	}
	mask := updateMask(rt.RPC, fields)
	if mask == "" {
		return errs.Field("", "the body has no field to change")
	}
	params.Set(maskField, mask)
	return nil
}

// format serves ?format=pem of a certificate's version by the RPC for downloads.
func format(u *url.URL, rpc *route.RPC) (path, rawQuery string, err error) {
	if rpc.Method != inventoryv1.CertificateService_GetCertificateVersion_FullMethodName || !strings.Contains(u.RawQuery, "format=") {
		return u.Path, u.RawQuery, nil
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", "", errs.Field("", "the query is not valid: %v", err)
	}
	values := params["format"]
	params.Del("format")
	switch {
	case len(values) == 1 && values[0] == "pem":
		return u.Path + "/pem", params.Encode(), nil
	case len(values) == 0 || len(values) == 1 && values[0] == "json":
		return u.Path, params.Encode(), nil
	default:
		return "", "", errs.Field("format", "is %q: want json or pem", strings.Join(values, ", "))
	}
}

// forwarded are the headers of a request that services see, as metadata of the same name.
func forwarded() []string { return []string{rpc.MetadataIdempotencyKey, rpc.MetadataIfMatch} }

// allowed takes those headers. grpc-gateway would drop a value that is no metadata, and with it the condition or the key
// that the client relies on: such a request is refused.
func allowed(in http.Header) (http.Header, error) {
	var bad errs.Violations
	out := make(http.Header)
	for _, name := range forwarded() {
		v := in.Get(name)
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
			bad.Add(http.CanonicalHeaderKey(name), "has characters other than printable ASCII")
		}
		if v != "" {
			out.Set(name, v)
		}
	}
	return out, bad.Err()
}

func incoming(header string) (string, bool) {
	for _, name := range forwarded() {
		if strings.EqualFold(header, name) {
			return name, true
		}
	}
	return "", false
}

// outgoing lets no metadata become a header: what users need of it, the error handler and created put there.
func outgoing(string) (string, bool) { return "", false }

// created answers 201 with the place of what a Create… method has made.
func created(ctx context.Context, w http.ResponseWriter, m proto.Message) error {
	method, _ := runtime.RPCMethod(ctx)
	pattern, _ := runtime.HTTPPathPattern(ctx)
	if !strings.HasPrefix(method[strings.LastIndexByte(method, '/')+1:], "Create") {
		return nil
	}
	if id := idOf(m); id != "" {
		w.Header().Set("Location", pattern+"/"+url.PathEscape(id))
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// idOf gives the id of the resource in an answer.
func idOf(m proto.Message) string {
	msg := m.ProtoReflect()
	fields := msg.Descriptor().Fields()
	if fields.Len() == 0 || fields.Get(0).Message() == nil || fields.Get(0).Cardinality() == protoreflect.Repeated {
		return ""
	}
	resource := msg.Get(fields.Get(0)).Message()
	id := resource.Descriptor().Fields().ByName("id")
	if id == nil || id.Kind() != protoreflect.StringKind {
		return ""
	}
	return resource.Get(id).String()
}

func writeError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	problem.Write(w, asSent(ctx, err))
}

// writeRoutingError is for what the table of routes has and grpc-gateway has not; the two are tested to be the same.
func writeRoutingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, _ int) {
	problem.Write(w, problem.NotFound(r.URL.Path))
}

type bodyFieldKey struct{}

func withBodyField(ctx context.Context, field string) context.Context {
	return context.WithValue(ctx, bodyFieldKey{}, field)
}

// asSent names the fields of violations as the client has sent them: the body is the field "certificate" of the
// message, and "certificate.dns_names[0]" of the message is "dns_names[0]" of the body.
func asSent(ctx context.Context, err error) error {
	field, _ := ctx.Value(bodyFieldKey{}).(string)
	e := errs.From(err)
	violations := e.Violations()
	if field == "" || field == "*" || len(violations) == 0 {
		return err
	}
	var renamed errs.Violations
	for _, v := range violations {
		renamed.Add(strings.TrimPrefix(v.Field, field+"."), "%s", v.Description)
	}
	out := errs.From(renamed.Err())
	for k, v := range e.Meta() {
		out = out.With(k, v)
	}
	return out
}

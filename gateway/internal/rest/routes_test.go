package rest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/gateway/internal/etag"
	"github.com/certctl/certctl/gateway/internal/route"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// notes is a connection that notes what is called.
type notes struct {
	name   string
	called *[]string
}

func (n notes) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	*n.called = append(*n.called, n.name+method)
	return nil
}

func (notes) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	panic("there are no streams in REST")
}

var variables = regexp.MustCompile(`\{[^}]+\}`)

func TestEachRouteReachesItsMethodAtItsService(t *testing.T) {
	t.Parallel()
	var called []string
	backends := make(map[string]grpc.ClientConnInterface)
	for _, name := range []string{route.Inventory, route.Issuance, route.RenewalScheduler, route.Audit} {
		backends[name] = notes{name, &called}
	}
	tags, err := etag.New(backends, prometheus.NewRegistry())
	require.NoError(t, err)
	h, err := New(Config{MaxBody: 1 << 20, Timeout: time.Second}, Deps{Backends: backends, Tags: tags})
	require.NoError(t, err)
	table := route.NewTable(route.REST()...)
	require.Greater(t, len(table.Routes()), 50)
	for _, rt := range table.Routes() {
		path := variables.ReplaceAllStringFunc(rt.Pattern, func(v string) string {
			if v == "{version}" {
				return "1"
			}
			return "x"
		})
		found, _ := table.Match(rt.Verb, path)
		require.Same(t, rt, found, path)
		body := ""
		if rt.RPC.Body != "" {
			body = "{}"
		}
		if rt.Verb == http.MethodPatch {
			body = `{"name":"x"}`
		}
		called = nil
		rec := httptest.NewRecorder()
		h.Serve(rec, httptest.NewRequestWithContext(t.Context(), rt.Verb, path, strings.NewReader(body)), rt)
		require.Less(t, rec.Code, 300, "%s %s: %s", rt.Verb, path, rec.Body)
		require.NotEmpty(t, called, path)
		method := rt.RPC.Method
		if method == issuancev1.CrlService_GetCrl_FullMethodName {
			method = issuancev1.CrlService_ReadCrl_FullMethodName // the same in pieces
		}
		require.Equal(t, rt.RPC.Backend+method, called[len(called)-1], path)
	}
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"name":"x","dns_names":["a"],"labels":{"a":"b"}}`))
	f.Add([]byte(`{"a":[{"b":null}]}`))
	rt, _ := route.NewTable(route.REST()...).Match(http.MethodPost, "/api/v1/certificates")
	target, _ := route.NewTable(route.REST()...).Match(http.MethodPost, "/api/v1/targets")
	f.Fuzz(func(_ *testing.T, body []byte) {
		_, _ = checkBody(rt.RPC, body)
		_, _ = checkBody(target.RPC, body)
	})
}

func FuzzQuery(f *testing.F) {
	f.Add("page_size=1&label.a=b&status=ACTIVE")
	rt, _ := route.NewTable(route.REST()...).Match(http.MethodGet, "/api/v1/certificates")
	f.Fuzz(func(_ *testing.T, raw string) { _, _ = query(rt.RPC, raw) })
}

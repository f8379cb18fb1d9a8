// Package check_test reads the example configurations that no test runs, as strictly as the programs that they are for. It has a
// module of its own, because those programs are large: GOWORK=off go test ./... here.
package check_test

import (
	"os"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/stretchr/testify/require"
	"github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func TestTraefikReadsItsExample(t *testing.T) {
	t.Parallel()
	text := string(content(t, "../traefik/certctl.yaml"))
	var cfg dynamic.Configuration
	require.NoError(t, file.DecodeContent(text, ".yaml", &cfg))
	http := cfg.HTTP
	require.Len(t, http.Routers, 4)
	for name, r := range http.Routers {
		require.Contains(t, http.Services, r.Service, name)
		for _, m := range r.Middlewares {
			require.Contains(t, http.Middlewares, m, name)
		}
	}
	transport := http.ServersTransports[http.Services["certctl"].LoadBalancer.ServersTransport]
	require.NotNil(t, transport)
	require.False(t, transport.InsecureSkipVerify)
	unknown := strings.Replace(text, "trustForwardHeader:", "trustForwardHeaders:", 1)
	require.Error(t, file.DecodeContent(unknown, ".yaml", &dynamic.Configuration{}), "unknown fields are to be refused")
}

func TestEnvoyReadsItsExample(t *testing.T) {
	t.Parallel()
	j, err := yaml.YAMLToJSONStrict(content(t, "../envoy/envoy.yaml"))
	require.NoError(t, err)
	var cfg bootstrapv3.Bootstrap
	require.NoError(t, protojson.Unmarshal(j, &cfg), "unknown fields and types are refused")
	require.NoError(t, cfg.ValidateAll())
	extensions := 0
	require.NoError(t, protorange.Range(cfg.ProtoReflect(), func(p protopath.Values) error {
		m, ok := p.Index(-1).Value.Interface().(protoreflect.Message)
		if !ok {
			return nil
		}
		wrapped, ok := m.Interface().(*anypb.Any)
		if !ok {
			return nil
		}
		extensions++
		return valid(wrapped)
	}))
	require.Greater(t, extensions, 6, "the test does not see the extensions")
}

// valid judges an extension by the rules of its own message.
func valid(wrapped *anypb.Any) error {
	inner, err := wrapped.UnmarshalNew()
	if err != nil {
		return err
	}
	if v, ok := inner.(interface {
		proto.Message
		ValidateAll() error
	}); ok {
		return v.ValidateAll()
	}
	return nil
}

package route_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/certctl/certctl/gateway/internal/route"
	_ "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1" // its services are for peers
	_ "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

func TestExactlyTheServicesForUsersAndAgentsAreExposed(t *testing.T) {
	t.Parallel()
	methods := route.Methods()
	services := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), "certctl.") {
			return true
		}
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			services++
			name := string(service.Name())
			forPeers := strings.HasSuffix(name, "InternalService") || name == "EventSinkService" || name == "RevisionService" || name == "AgentRelayService"
			for j := range service.Methods().Len() {
				full := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(j).Name())
				if forPeers {
					require.NotContains(t, methods, full)
				} else {
					require.Contains(t, methods, full)
					require.Equal(t, string(service.FullName()) == route.AgentService, methods[full].Agent)
				}
			}
		}
		return true
	})
	require.Greater(t, services, 15)
	require.True(t, methods["/certctl.agent.v1.AgentService/Connect"].Streaming)
}

func TestEachRoutesBackendOwnsItsPackage(t *testing.T) {
	t.Parallel()
	for name, m := range route.Methods() {
		if m.Agent {
			require.Equal(t, route.Inventory, m.Backend)
			continue
		}
		require.True(t, strings.HasPrefix(name, "/certctl."+m.Backend+".v1."), name)
	}
}

func TestLiteralsWinOverVariables(t *testing.T) {
	t.Parallel()
	table := route.NewTable(route.REST()...)
	for path, method := range map[string]string{
		"/api/v1/agents/join-tokens": "ListJoinTokens", "/api/v1/agents/x": "GetAgent", "/api/v1/audit/checkpoint": "GetCheckpoint", "/api/v1/audit/evt-1": "GetEvent",
	} {
		r, _ := table.Match(http.MethodHead, path)
		require.NotNil(t, r, path)
		require.Equal(t, method, r.RPC.Name, path)
	}
	r, allow := table.Match(http.MethodPost, "/api/v1/certificates/x")
	require.Nil(t, r)
	require.Equal(t, []string{"DELETE", "GET", "HEAD", "PATCH"}, allow)
	for _, path := range []string{"", "/", "/api/v1", "/api/v1/certificates/", "/api/v1/certificates/x/", "api/v1/certificates"} {
		r, allow := table.Match(http.MethodGet, path)
		require.Nil(t, r, path)
		require.Empty(t, allow, path)
	}
}

package serve

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// free is an address that nobody listens on at the moment.
func free(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, lis.Close()) }()
	return lis.Addr().String()
}

func TestAServiceThatWaitsForItsSchemaIsAliveAndNotReady(t *testing.T) {
	t.Parallel()
	db := testpg.NewDatabase(t) // without schemas
	var cfg settings.Server
	_, err := config.Load(&cfg, []string{"CERTCTL_DATA_DIR=" + t.TempDir(), "CERTCTL_INTERNAL_SECRET=a secret of services in tests", "CERTCTL_LOG_LEVEL=error",
		"CERTCTL_HEALTH_LISTEN_ADDR=" + free(t), "CERTCTL_METRICS_LISTEN_ADDR=" + free(t), "CERTCTL_GRPC_LISTEN_ADDR=" + free(t)}, config.Options{})
	require.NoError(t, err)
	cfg.Postgres.URL = secretbox.NewSecret(db.URL())
	ctx, cancel := context.WithCancel(t.Context())
	ended := run.Go(func() error { return One(ctx, cfg, nameAudit) })
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})

	conn, err := grpc.NewClient("passthrough:///"+cfg.Process.HealthAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	client := grpc_health_v1.NewHealthClient(conn)
	is := func(service string, want grpc_health_v1.HealthCheckResponse_ServingStatus) func() bool {
		return func() bool {
			answer, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
			require.NoError(t, err)
			return answer.GetStatus() == want
		}
	}
	require.True(t, is(Liveness, grpc_health_v1.HealthCheckResponse_SERVING)())
	require.True(t, is("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)())
	_, err = client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"})
	require.Equal(t, codes.NotFound, status.Code(err))
	require.Eventually(t, func() bool { return shows(t, cfg, "/metrics", "go_goroutines") }, patience, interval)
	require.True(t, shows(t, cfg, "/loops", "{}"), "there are no loops yet")

	quotas, err := cfg.Postgres.ServiceQuotas()
	require.NoError(t, err)
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: cfg.Postgres.URL, Schemas: Schemas(), Quotas: quotas}))
	require.Eventually(t, is("", grpc_health_v1.HealthCheckResponse_SERVING), patience, interval)
	require.True(t, shows(t, cfg, "/metrics", "certctl_audit_chain_broken"), "metrics of the service come later")
	require.True(t, shows(t, cfg, "/loops", `"audit"`))
}

// shows tells whether a page of the metrics' listener has a text.
func shows(t *testing.T, cfg settings.Server, path, text string) bool {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.Process.MetricsAddr+path, http.NoBody)
	require.NoError(t, err)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return false // it does not listen yet
	}
	defer func() { require.NoError(t, answer.Body.Close()) }()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return strings.Contains(string(body), text)
}

func TestAServiceThatIsToldToEndWhileItWaitsEndsInOrder(t *testing.T) {
	t.Parallel()
	var cfg settings.Server
	_, err := config.Load(&cfg, []string{"CERTCTL_DATA_DIR=" + t.TempDir(), "CERTCTL_INTERNAL_SECRET=a secret of services in tests", "CERTCTL_LOG_LEVEL=error",
		"CERTCTL_HEALTH_LISTEN_ADDR=" + free(t), "CERTCTL_GRPC_LISTEN_ADDR=" + free(t), "CERTCTL_DATABASE_URL=postgres://u:p@" + free(t) + "/certctl"}, config.Options{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := run.Go(func() error { return One(ctx, cfg, nameAudit) })
	conn, err := grpc.NewClient("passthrough:///"+cfg.Process.HealthAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: Liveness}, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, answer.GetStatus(), "it waits")
	cancel()
	require.NoError(t, <-ended)
}

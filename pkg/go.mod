module github.com/certctl/certctl/pkg

go 1.26.0

require (
	github.com/certctl/certctl/proto v0.0.0
	google.golang.org/grpc v1.85.0
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.33.0
	google.golang.org/protobuf v1.36.12
	github.com/grpc-ecosystem/go-grpc-middleware/v2 v2.3.4
	github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus v1.1.1
	go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc v0.72.0
	github.com/prometheus/client_golang v1.25.0
	github.com/jackc/pgx/v5 v5.12.0
	github.com/pressly/goose/v3 v3.29.0
	buf.build/go/protovalidate v1.4.0
	github.com/caarlos0/env/v11 v11.4.2
	go.uber.org/zap v1.28.0
	golang.org/x/sync v0.24.0
	golang.org/x/time v0.16.0
	golang.org/x/crypto v0.58.0
	golang.org/x/net v0.62.0
	github.com/fergusstrange/embedded-postgres v1.34.0
	github.com/stretchr/testify v1.12.1
	pgregory.net/rapid v1.3.0
	go.uber.org/goleak v1.3.0
	github.com/google/uuid v1.6.0
	github.com/cenkalti/backoff/v5 v5.0.3
	buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go v1.36.12-20260825204119-511051f7f437.2
	google.golang.org/genproto/googleapis/api v0.0.0-20261104224025-d1e00e9f33ab
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261104224025-d1e00e9f33ab
	gopkg.in/yaml.v3 v3.0.1
)

replace (
	github.com/certctl/certctl/proto => ../proto
)

module github.com/certctl/certctl/gateway

go 1.26.0

require (
	github.com/certctl/certctl/proto v0.0.0
	github.com/certctl/certctl/pkg v0.0.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.33.0
	google.golang.org/genproto/googleapis/api v0.0.0-20261104224025-d1e00e9f33ab
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261104224025-d1e00e9f33ab
	buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go v1.36.12-20260825204119-511051f7f437.2
	go.uber.org/zap v1.28.0
	github.com/prometheus/client_golang v1.25.0
	golang.org/x/time v0.16.0
	golang.org/x/sync v0.24.0
	golang.org/x/net v0.62.0
	github.com/google/uuid v1.6.0
	github.com/stretchr/testify v1.12.1
	pgregory.net/rapid v1.3.0
	go.uber.org/goleak v1.3.0
)

replace (
	github.com/certctl/certctl/proto => ../proto
	github.com/certctl/certctl/pkg => ../pkg
)

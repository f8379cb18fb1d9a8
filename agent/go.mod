module github.com/certctl/certctl/agent

go 1.26.0

require (
	github.com/certctl/certctl/proto v0.0.0
	github.com/certctl/certctl/pkg v0.0.0
	github.com/certctl/certctl/pkg/connector v0.0.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	go.uber.org/zap v1.28.0
	github.com/google/uuid v1.6.0
	golang.org/x/sync v0.24.0
	github.com/spf13/cobra v1.10.2
	github.com/stretchr/testify v1.12.1
	pgregory.net/rapid v1.3.0
	go.uber.org/goleak v1.3.0
)

replace (
	github.com/certctl/certctl/proto => ../proto
	github.com/certctl/certctl/pkg => ../pkg
	github.com/certctl/certctl/pkg/connector => ../pkg/connector
)

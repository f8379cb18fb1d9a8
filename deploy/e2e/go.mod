module github.com/certctl/certctl/deploy/e2e

go 1.26.0

require (
	github.com/certctl/certctl/proto v0.0.0
	github.com/certctl/certctl/pkg v0.0.0
	github.com/certctl/certctl/pkg/connector v0.0.0
	github.com/certctl/certctl/services v0.0.0
	github.com/certctl/certctl/gateway v0.0.0
	github.com/certctl/certctl/agent v0.0.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	github.com/jackc/pgx/v5 v5.12.0
	github.com/stretchr/testify v1.12.1
	pgregory.net/rapid v1.3.0
	go.uber.org/goleak v1.3.0
)

replace (
	github.com/certctl/certctl/proto => ../../proto
	github.com/certctl/certctl/pkg => ../../pkg
	github.com/certctl/certctl/pkg/connector => ../../pkg/connector
	github.com/certctl/certctl/services => ../../services
	github.com/certctl/certctl/gateway => ../../gateway
	github.com/certctl/certctl/agent => ../../agent
)

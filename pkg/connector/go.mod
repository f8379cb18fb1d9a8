module github.com/certctl/certctl/pkg/connector

go 1.26.0

require (
	github.com/certctl/certctl/proto v0.0.0
	github.com/certctl/certctl/pkg v0.0.0
	go.uber.org/zap v1.28.0
	github.com/google/uuid v1.6.0
	golang.org/x/crypto v0.58.0
	golang.org/x/sync v0.24.0
	github.com/zmap/zlint/v3 v3.7.3
	github.com/cenkalti/backoff/v5 v5.0.3
	github.com/stretchr/testify v1.12.1
	pgregory.net/rapid v1.3.0
	go.uber.org/goleak v1.3.0
)

replace (
	github.com/certctl/certctl/proto => ../../proto
	github.com/certctl/certctl/pkg => ../../pkg
)

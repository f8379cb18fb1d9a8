# certctl. `make help` lists the targets.

SHELL       := /bin/bash
.DEFAULT_GOAL := help

MODULES     := proto pkg pkg/connector services gateway agent deploy/bench deploy/e2e deploy/images deploy/helm
PATTERNS    := $(addprefix ./,$(addsuffix /...,$(MODULES)))
BIN         := $(CURDIR)/bin
TOOLS       := $(BIN)/tools
VERSION     ?= $(shell git describe --tags --always --abbrev=12 --dirty 2>/dev/null || echo dev)
COMMIT      ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X github.com/certctl/certctl/pkg/version.Version=$(VERSION) -X github.com/certctl/certctl/pkg/version.Commit=$(COMMIT)
GOBUILD     := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
COMMIT_TIME ?= $(shell git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
REPOSITORY  ?= ghcr.io/certctl
# The Go of the Dockerfiles: the same commit gives the same images only with the same Go.
GO_OF_IMAGES ?= go1.26.8
TEST_FLAGS  ?=

export PATH := $(TOOLS):$(PATH)

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Start certctl on a Postgres of its own, in ./.certctl
	@$(BIN)/certctl serve

.PHONY: build
build: ## Build bin/certctl and bin/certctl-agent
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/certctl ./services/cmd/certctl
	$(GOBUILD) -o $(BIN)/certctl-agent ./agent/cmd/certctl-agent

.PHONY: images
images: ## Make the container images in bin/images, for amd64 and arm64; needs no container engine
	@GOTOOLCHAIN=$(GO_OF_IMAGES) go run ./deploy/images/cmd/images -out $(BIN)/images -repository $(REPOSITORY) \
		-version $(VERSION) -commit $(COMMIT) -created $(COMMIT_TIME)

.PHONY: test
test: ## Run every test (needs what .ci/prerequisites lists: Postgres, nginx, openssl, …)
	@.ci/prerequisites
	go test $(TEST_FLAGS) -timeout 20m $(PATTERNS)

.PHONY: torture
torture: ## Play SEEDS random schedules of faults and crashes, from SEED on (one again: SEED=4711 SEEDS=1)
	@.ci/prerequisites
	SEED=$(or $(SEED),1) SEEDS=$(or $(SEEDS),20000) go test $(TEST_FLAGS) -count=1 -timeout 0 -v -run TestRandomSchedules ./services/torture

.PHONY: chaos
chaos: ## Play MINUTES of faults under load, from SEED; STORM: certificates due at once; FAULTS: a pattern of kinds (docs/dev/testing.md)
	@.ci/prerequisites
	SEED=$(or $(SEED),1) MINUTES=$(or $(MINUTES),10) STORM=$(STORM) FAULTS='$(FAULTS)' go test $(TEST_FLAGS) -count=1 -timeout 0 -v -run TestFaultsUnderLoad ./deploy/e2e

.PHONY: bench
bench: build ## Measure certctl with SIZES certificates and write docs/bench (docs/dev/bench.md); ONLY: some of it
	go build -o $(BIN)/bench ./deploy/bench/cmd/bench
	$(BIN)/bench -certctl $(BIN)/certctl -sizes $(or $(SIZES),1000,100000) $(if $(ONLY),-only $(ONLY)) $(BENCH_FLAGS)

.PHONY: helm-check
helm-check: ## Render the chart by Helm's own engine and hold it against types, policies and documents
	go test $(TEST_FLAGS) ./deploy/helm/...

.PHONY: helm-generate
helm-generate: ## Generate the chart's schema, defaults and table of values from values.yaml
	go run ./deploy/helm/cmd/chartdoc deploy/helm/certctl

.PHONY: helm-e2e
helm-e2e: ## Install the chart into the cluster of KUBECONFIG, and shake it (docs/dev/testing.md)
	deploy/helm/e2e/run

.PHONY: check
check: generate-check tidy-check lint ## Generated code is current, modules are tidy, lint is clean, the wire stays compatible
	buf lint
	@.ci/breaking

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## Run the linters
	go vet -tags cluster $(PATTERNS)
	golangci-lint run $(PATTERNS)

.PHONY: generate
generate: $(TOOLS)/buf proto-deps helm-generate ## Generate Go, gateway and OpenAPI from proto, the settings reference, and what the chart has from its values
	buf generate
	go run ./services/cmd/certctl config document > deploy/ENVIRONMENTS.md

.PHONY: generate-check
generate-check: generate
	@git diff --exit-code --stat -- proto/gen deploy/ENVIRONMENTS.md deploy/helm/certctl || { echo "generated files differ: run 'make generate' and commit" >&2; exit 1; }
	@test -z "$$(git ls-files --others --exclude-standard -- proto/gen)" || { echo "new generated files: commit them" >&2; exit 1; }

.PHONY: proto-deps
proto-deps: ## Print the third-party .proto files into .proto-deps
	@go run ./proto/internal/protodeps .proto-deps

.PHONY: tidy
tidy: ## Tidy every module
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy) || exit 1; done

.PHONY: tidy-check
tidy-check:
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy -diff >/dev/null) || { echo "$$m/go.mod is not tidy: run 'make tidy'" >&2; exit 1; }; done

$(TOOLS)/buf: .ci/tools/go.mod
	@echo "building the code generators (once)"
	@cd .ci/tools && GOWORK=off GOBIN=$(TOOLS) go install tool && touch $@

$(TOOLS)/golangci-lint: .ci/lint/go.mod
	@echo "building golangci-lint (once, takes minutes)"
	@cd .ci/lint && GOWORK=off GOBIN=$(TOOLS) go install tool && touch $@

.PHONY: clean
clean: ## Remove what was built; the data directory stays
	rm -rf $(BIN) .proto-deps

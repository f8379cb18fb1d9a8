# The image of certctl-agent. From the top of the source tree:
#   docker build -f deploy/images/certctl-agent.Dockerfile --build-arg VERSION=... --build-arg COMMIT=... --build-arg CREATED=... .
# 'make images' makes the same without a container engine; a test compares both.
FROM --platform=$BUILDPLATFORM golang:1.26.8 AS build
ARG GOPROXY
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
COPY . /src
WORKDIR /src/agent
ENV CGO_ENABLED=0 GOOS=linux GOWORK=off GOTOOLCHAIN=local GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X github.com/certctl/certctl/pkg/version.Version=$VERSION -X github.com/certctl/certctl/pkg/version.Commit=$COMMIT" \
      -o /out/certctl-agent ./cmd/certctl-agent
RUN install -D -m 0755 /out/certctl-agent /rootfs/usr/local/bin/certctl-agent && \
    install -D -m 0644 -t /rootfs/etc /src/deploy/images/rootfs/etc/passwd /src/deploy/images/rootfs/etc/group && \
    install -d -m 1777 /rootfs/tmp && \
    install -d -m 0755 /rootfs/var/lib && \
    install -d -m 0700 -o 65532 -g 65532 /rootfs/var/lib/certctl-agent

FROM scratch
ARG VERSION=dev
ARG COMMIT=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="certctl agent" \
      org.opencontainers.image.source="https://github.com/certctl/certctl" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.created="$CREATED"
COPY --from=build /rootfs/ /
ENV PATH=/usr/local/bin CERTCTL_DATA_DIR=/var/lib/certctl-agent
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/local/bin/certctl-agent"]

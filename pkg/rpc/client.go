package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/certctl/certctl/pkg/secretbox"
)

// DefaultTimeout is the deadline of a unary call whose context has none.
const DefaultTimeout = 10 * time.Second

// roundRobin spreads the calls over all addresses of a target, which grpc's default does not.
const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`

// ClientConfig sets up a connection.
type ClientConfig struct {
	// Service is the name of the service that calls. It is empty for a client outside of the installation, which
	// sends neither peer token nor caller.
	Service string
	// Target is a gRPC target, such as "dns:///inventory:9443"; with a Dialer it is the name of the service.
	Target string
	// Peer is the name of the service at the target, for errors; "" means the host in Target.
	Peer string
	// InternalSecret is what peer tokens derive from, or a list of which the first is used. It is needed when Service is
	// not empty.
	InternalSecret secretbox.Secret
	// Credentials are those of a client outside of the installation; nil is none.
	Credentials credentials.PerRPCCredentials
	// TLS is needed unless there is a Dialer; TLS 1.3 is the least.
	TLS *tls.Config
	// Dialer connects in memory; MemoryNetwork makes it.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
	// DefaultTimeout is the deadline of a unary call whose context has none; 0 means the constant. Streams get none.
	DefaultTimeout time.Duration
	// Metrics counts the calls; nil does not.
	Metrics *ClientMetrics
	// Tracing switches OpenTelemetry on, with the providers of the process.
	Tracing bool
	// Options come before those of this package: their interceptors are the outermost.
	Options []grpc.DialOption
}

// Dial makes a connection. It does not connect before the first call; calls fail at once while the target is away.
// Nothing is retried but what never left the client: whether a call may be repeated is for its caller to know.
func Dial(cfg ClientConfig) (*grpc.ClientConn, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("dial %s: %w", cfg.Target, err)
	}
	target := cfg.Target
	if cfg.Dialer != nil {
		target = "passthrough:///" + target
	}
	conn, err := grpc.NewClient(target, cfg.options()...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", cfg.Target, err)
	}
	return conn, nil
}

func (c *ClientConfig) complete() error {
	c.DefaultTimeout = cmp.Or(c.DefaultTimeout, DefaultTimeout)
	c.Peer = cmp.Or(c.Peer, peerName(c.Target))
	if c.Dialer == nil && c.TLS == nil {
		return errors.New("a connection out of the process needs TLS")
	}
	if c.Service == "" {
		return nil
	}
	secrets, err := c.InternalSecret.InternalList()
	if err != nil {
		return err
	}
	c.Credentials = peerCredentials{token: PeerToken(secrets[0], c.Service), secure: c.Dialer == nil}
	return nil
}

// peerName gives the host of a target, without scheme and port.
func peerName(target string) string {
	host := target[strings.LastIndexByte(target, '/')+1:]
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

func (c *ClientConfig) options() []grpc.DialOption {
	opts := append([]grpc.DialOption{}, c.Options...)
	opts = append(opts,
		grpc.WithDefaultServiceConfig(roundRobin),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxAnswerSize), grpc.MaxCallSendMsgSize(MaxMessageSize)),
		grpc.WithMaxHeaderListSize(maxHeaderListSize),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(connectParams()),
		grpc.WithTransportCredentials(c.transport()),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
	)
	if c.Credentials != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(c.Credentials))
	}
	if c.Dialer != nil {
		opts = append(opts, grpc.WithContextDialer(c.Dialer))
	}
	return append(opts, c.observers()...)
}

// observers see each call as it goes out.
func (c *ClientConfig) observers() []grpc.DialOption {
	var opts []grpc.DialOption
	if c.Metrics != nil {
		opts = append(opts,
			grpc.WithChainUnaryInterceptor(c.Metrics.UnaryClientInterceptor()),
			grpc.WithChainStreamInterceptor(c.Metrics.StreamClientInterceptor()))
	}
	if c.Tracing {
		opts = append(opts, grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
	}
	return opts
}

func (c *ClientConfig) transport() credentials.TransportCredentials {
	if c.TLS == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(atLeastTLS13(c.TLS))
}

// connectParams come back sooner than grpc's own, whose delays grow to two minutes: the peers are near.
func connectParams() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff: backoff.Config{
			BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second,
		},
		MinConnectTimeout: 5 * time.Second,
	}
}

// peerCredentials sends the peer token. Except in memory it refuses to do so without TLS.
type peerCredentials struct {
	token  secretbox.Secret
	secure bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p peerCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{MetadataAuthorization: bearerPrefix + p.token.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p peerCredentials) RequireTransportSecurity() bool { return p.secure }

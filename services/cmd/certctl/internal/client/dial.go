package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/version"
)

// maxMessage bounds an answer, bytes: a page of a thousand versions with their PEM has its place in it.
const maxMessage = 64 << 20

// dial makes the connection; nothing is sent yet.
func (s *session) dial() (*grpc.ClientConn, error) {
	config, err := s.access.tls()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(s.access.address,
		grpc.WithTransportCredentials(observed{credentials.NewTLS(config), s.handshake}),
		grpc.WithPerRPCCredentials(bearer{s.access.key}),
		grpc.WithUserAgent("certctl/"+version.Version),
		grpc.WithUnaryInterceptor(s.intercept),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, usagef("the URL %q is not right: %v", s.access.url, err)
	}
	return conn, nil
}

// tls trusts the pinned CA alone, or the system's when there is none.
func (ac access) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ac.host}
	if len(ac.ca) == 0 {
		return config, nil
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(ac.ca) {
		return nil, usagef("%s holds no certificate in PEM", ac.caFrom)
	}
	return config, nil
}

// bearer sends the API key (RFC 6750), over TLS only.
type bearer struct{ key secretbox.Secret }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b.key.IsZero() {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + b.key.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return true }

// handshake keeps the error of the last TLS handshake: gRPC passes it on as text only.
type handshake struct {
	mu  sync.Mutex
	err error
}

func (h *handshake) set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

func (h *handshake) last() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// observed notes what becomes of handshakes.
type observed struct {
	credentials.TransportCredentials
	handshake *handshake
}

// ClientHandshake implements credentials.TransportCredentials.
func (o observed) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := o.TransportCredentials.ClientHandshake(ctx, authority, raw)
	o.handshake.set(err)
	if err != nil {
		return nil, nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (o observed) Clone() credentials.TransportCredentials {
	return observed{o.TransportCredentials.Clone(), o.handshake}
}

// responded is what came back besides the message.
type responded struct{ header, trailer metadata.MD }

// any tells whether the other side sent something: without a connection there is neither.
func (r responded) any() bool { return len(r.header) > 0 || len(r.trailer) > 0 }

// first gives the first value of a key.
func (r responded) first(key string) string {
	for _, md := range []metadata.MD{r.header, r.trailer} {
		if values := md.Get(key); len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

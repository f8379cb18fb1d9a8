// Package control is the agent's way to the control plane: one TLS connection that it dials itself, with the bearer
// credential in each call.
package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/certctl/certctl/agent/internal/identity"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

// maxMessage bounds what is received, bytes.
const maxMessage = 4 << 20

// connectTimeout bounds a connection's beginning, with the TLS handshake. When a whole fleet returns at once, its last agents wait long
// for their turn; who gives up and begins anew makes them all wait longer.
const connectTimeout = 30 * time.Second

// reasonRetired is the reason with which the server ends an agent for good.
const reasonRetired = "AGENT_RETIRED"

// ErrRetired says that the server has retired this agent.
var ErrRetired = errors.New("the agent has been retired")

// Dial prepares the connection; it connects with the first call. The server is an https URL; ca, if not empty, is a file or a
// directory with the only certificates that are trusted: roots, or the server's own.
func Dial(server, ca string, id *identity.Store, log *zap.Logger) (*grpc.ClientConn, error) {
	target, host, err := target(server)
	if err != nil {
		return nil, err
	}
	trust, err := openTrust(ca, log)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("dns:///"+target,
		grpc.WithTransportCredentials(newPinned(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}, trust)),
		grpc.WithPerRPCCredentials(bearer{id}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout,
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 10 * time.Second}}),
		// Heartbeats that nobody acknowledges end the connection, too: grpc gives it a TCP_USER_TIMEOUT of Timeout.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Minute, Timeout: 15 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to %s: %w", server, err)
	}
	return conn, nil
}

func target(server string) (address, host string, err error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return "", "", fmt.Errorf("server %q must be a URL such as https://certctl.example.com:8443", server)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), u.Hostname(), nil
}

// bearer adds the credential, when there is one.
type bearer struct{ id *identity.Store }

type credentialKey struct{}

// With has calls made under the context use this credential, instead of the newest one: who needs to know which credential the
// server has judged fixes it first.
func With(ctx context.Context, c secretbox.Secret) context.Context {
	return context.WithValue(ctx, credentialKey{}, c)
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	c, fixed := ctx.Value(credentialKey{}).(secretbox.Secret)
	if !fixed {
		c = b.id.Credential()
	}
	if c.IsZero() {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + c.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

// Retired tells whether an answer means that the agent is retired.
func Retired(err error) bool {
	return errors.Is(err, ErrRetired) || errs.ReasonOf(err) == reasonRetired
}

// Unauthenticated tells whether the server refuses the credential.
func Unauthenticated(err error) bool { return errs.KindOf(err) == errs.Unauthenticated }

// Backoff is a wait with full jitter that doubles up to a cap (1 s to 30 s): however long the server was away, within half a minute
// everybody has come back.
type Backoff struct{ attempt int }

// Next answers how long to wait now.
func (b *Backoff) Next() time.Duration {
	const first, most = time.Second, 30 * time.Second
	ceiling := most
	if b.attempt < 5 {
		ceiling = min(most, first<<b.attempt)
	}
	b.attempt++
	return 1 + rand.N(ceiling) //nolint:gosec // nobody gains by guessing when an agent comes back
}

// Reset starts over after a success.
func (b *Backoff) Reset() { b.attempt = 0 }

// Package handshake does TLS handshakes before a server gets the connections, each in a goroutine that ends with it: the stack that a
// handshake needs (most of it for ML-KEM) is then not that of the goroutine which keeps the connection, for ten thousand agents some
// 100 MiB. And it has handshakes go through the costly part in turn, so that when all agents return at once each is done soon after its
// turn has come, instead of all at the end, when they have given up.
package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/run"
)

// acceptAgain is the pause after an error of Accept that passes, such as too many open files.
const acceptAgain = 50 * time.Millisecond

// Config sets up a Listener.
type Config struct {
	// TLS has the protocols to offer in NextProtos. It is the listener's from here on.
	TLS *tls.Config
	// Timeout bounds a handshake.
	Timeout time.Duration
	Log     *zap.Logger
}

// Listener gives connections (*tls.Conn) whose handshake is done.
type Listener struct {
	net.Listener
	cfg Config
	// machines and people are those past their hello: of clients that speak HTTP/2 alone, as agents do, and of all others. A fleet that
	// returns does not keep people waiting.
	machines, people chan struct{}
	noTickets        *tls.Config // for machines: their connections last, and agents resume no session
	done             chan net.Conn
	ended            <-chan error
	life             context.Context //nolint:containedctx // of the listener: handshakes end with it
	end              context.CancelFunc
}

// Listen accepts connections on lis until Close.
func Listen(ctx context.Context, lis net.Listener, cfg Config) *Listener {
	turns := 2 * runtime.GOMAXPROCS(0)
	l := &Listener{Listener: lis, cfg: cfg, machines: make(chan struct{}, turns), people: make(chan struct{}, turns), done: make(chan net.Conn)}
	l.life, l.end = context.WithCancel(context.WithoutCancel(ctx))
	l.noTickets = cfg.TLS.Clone()
	l.noTickets.SessionTicketsDisabled = true
	cfg.TLS.GetConfigForClient = l.hello
	l.ended = run.Go(l.accept)
	return l
}

// Accept gives the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.done:
		return c, nil
	case err := <-l.ended:
		return nil, errors.Join(err, net.ErrClosed)
	}
}

// Close ends the listener. Handshakes under way are broken off.
func (l *Listener) Close() error {
	l.end()
	return l.Listener.Close() //nolint:wrapcheck // as net.Listener has it
}

func (l *Listener) accept() error {
	var shaking sync.WaitGroup
	defer shaking.Wait()
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			shaking.Add(1)
			run.Go(func() error {
				defer shaking.Done()
				l.shake(c)
				return nil
			})
			continue
		}
		if l.life.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		l.cfg.Log.Warn("no connection could be accepted", logx.Error(err))
		timer := time.NewTimer(acceptAgain)
		select {
		case <-timer.C:
		case <-l.life.Done():
			timer.Stop()
			return nil
		}
	}
}

// conn is a connection in its handshake. What is costly lies between the client's hello and the server's first bytes; a client that is far
// away, or never goes on, keeps nobody out.
type conn struct {
	*net.TCPConn
	free func()
}

// Write ends the turn.
func (c *conn) Write(b []byte) (int, error) {
	c.release()
	return c.TCPConn.Write(b) //nolint:wrapcheck // as net.Conn has it
}

func (c *conn) release() {
	if c.free != nil {
		c.free()
		c.free = nil
	}
}

// shake does the handshake of a connection and hands it over.
func (l *Listener) shake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Timeout)
	defer cancel()
	c := &conn{}
	if tcp, ok := raw.(*net.TCPConn); ok { // all others take no turns
		c.TCPConn, raw = tcp, c
	}
	shaken := tls.Server(raw, l.cfg.TLS)
	err := shaken.HandshakeContext(ctx)
	c.release()
	if err != nil {
		l.cfg.Log.Debug("TLS handshake failed", logx.Peer(raw.RemoteAddr().String()), logx.Error(err))
		explain(err)
		_ = raw.Close()
		return
	}
	select {
	case l.done <- shaken:
	case <-l.life.Done():
		_ = raw.Close()
	}
}

// hello is called by crypto/tls when the client's hello has come; before the keys are computed it waits for its turn.
func (l *Listener) hello(info *tls.ClientHelloInfo) (*tls.Config, error) {
	c, ok := info.Conn.(*conn)
	if !ok {
		return nil, nil //nolint:nilnil // as crypto/tls has it: the listener's own configuration
	}
	turns, config := l.people, (*tls.Config)(nil) // nil: the listener's own
	if slices.Equal(info.SupportedProtos, []string{"h2"}) {
		turns, config = l.machines, l.noTickets
	}
	select {
	case turns <- struct{}{}:
	case <-info.Context().Done():
		return nil, context.Cause(info.Context())
	}
	c.free = func() { <-turns }
	return config, nil
}

// explain tells who speaks plain HTTP what is wrong, as net/http does.
func explain(err error) {
	var bad tls.RecordHeaderError
	if !errors.As(err, &bad) || bad.Conn == nil {
		return
	}
	switch string(bad.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		_, _ = io.WriteString(bad.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n") // it has gone otherwise
	}
}

package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/run"
)

const (
	// flushTime lets the answers of the last calls leave before the connections are cut.
	flushTime = 100 * time.Millisecond
	// abandonTime is how long handlers have to return once their connections are cut.
	abandonTime = time.Second
)

// errAbandoned is logged when handlers go on although their calls have ended.
var errAbandoned = errors.New("handlers still run after the end of their calls")

// Serve prepares the server and serves on the listeners until ctx ends or one of them fails; then it stops as Drain
// does. The listeners are closed in any case. A server serves once.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if err := s.ready(listeners); err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	ended := make(chan struct{}, len(listeners))
	served := make([]<-chan error, 0, len(listeners))
	for _, lis := range listeners {
		served = append(served, run.Go(func() error {
			defer func() { ended <- struct{}{} }()
			return s.Server.Serve(lis)
		}))
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	s.Drain()
	return s.serveErrors(served)
}

// serveErrors joins how the listeners ended. A server that was stopped before it served has done as it was told.
func (s *Server) serveErrors(served []<-chan error) error {
	var problems []error
	for _, done := range served {
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			problems = append(problems, fmt.Errorf("rpc server %s: %w", s.cfg.Service, err))
		}
	}
	return errors.Join(problems...)
}

func (s *Server) ready(listeners []net.Listener) error {
	for _, lis := range listeners {
		if err := s.checkListener(lis); err != nil {
			return err
		}
	}
	return s.Prepare()
}

func closeAll(listeners []net.Listener) error {
	var problems []error
	for _, lis := range listeners {
		problems = append(problems, lis.Close())
	}
	return errors.Join(problems...)
}

// Drain stops the server: it becomes NOT_SERVING, takes no new connections, closes Draining, lets calls end for up
// to DrainTimeout, and cuts what is left. Long-lived streams that do not end have only DrainNotice, once no other
// call is under way. Further calls of Drain return when the first has.
func (s *Server) Drain() { s.drainOnce.Do(s.drain) }

func (s *Server) drain() {
	s.deps.Health.Shutdown()
	close(s.draining)
	stopped := run.Go(func() error {
		s.GracefulStop()
		return nil
	})
	if s.waitStopped(stopped) {
		return
	}
	aborted := run.Go(func() error {
		s.Stop()
		return nil
	})
	abandon := time.NewTimer(abandonTime)
	defer abandon.Stop()
	for range 2 {
		select {
		case err := <-stopped:
			s.noteStop(err)
			stopped = nil
		case err := <-aborted:
			s.noteStop(err)
			aborted = nil
		case <-abandon.C:
			s.deps.Logger.Warn("server stopped with work under way", logx.Error(errAbandoned), logx.Service(s.cfg.Service))
			return
		}
	}
}

// noteStop logs a panic of gRPC's own stop, its only way to fail.
func (s *Server) noteStop(err error) {
	if err != nil {
		s.deps.Logger.Error("stopping the server failed", logx.Error(err), logx.Service(s.cfg.Service))
	}
}

// waitStopped waits for the graceful stop, or until it is time to cut the connections; it tells whether the stop is
// complete.
func (s *Server) waitStopped(stopped <-chan error) bool {
	limit := time.NewTimer(s.cfg.DrainTimeout)
	defer limit.Stop()
	notice := time.NewTimer(s.cfg.DrainNotice)
	defer notice.Stop()
	var idle <-chan struct{}
	var flushed <-chan time.Time
	for {
		select {
		case err := <-stopped:
			s.noteStop(err)
			return true
		case <-limit.C:
			return false
		case <-notice.C:
			idle = s.inFlight.idle()
		case <-idle:
			idle = nil
			flush := time.NewTimer(flushTime)
			defer flush.Stop()
			flushed = flush.C
		case <-flushed:
			return false
		}
	}
}

// inFlight counts the calls that a stop waits for.
type inFlight struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // not nil once somebody waits
}

func newInFlight() *inFlight { return &inFlight{} }

func (f *inFlight) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
}

func (f *inFlight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	f.signal()
}

// idle gives a channel that is closed as soon as no call is under way.
func (f *inFlight) idle() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.zero == nil {
		f.zero = make(chan struct{})
	}
	zero := f.zero
	f.signal()
	return zero
}

// signal closes the channel when the count is zero; f.mu is held.
func (f *inFlight) signal() {
	if f.n == 0 && f.zero != nil {
		close(f.zero)
		f.zero = nil
	}
}

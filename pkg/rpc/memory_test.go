package rpc_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
)

func TestManyConnectionsAtOnceEachReachTheOtherSide(t *testing.T) {
	t.Parallel()
	const conns = 10_000
	n := rpc.NewMemoryNetwork()
	lis, err := n.Listen("echo")
	require.NoError(t, err)
	var servers, clients sync.WaitGroup
	servers.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			servers.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	dial := n.Dialer("echo")
	open := make([]net.Conn, conns)
	for i := range open {
		open[i], err = dial(t.Context(), "")
		require.NoError(t, err)
	}
	failures := make(chan error, conns)
	for _, c := range open {
		clients.Go(func() {
			defer c.Close()
			if _, err := c.Write([]byte("hello")); err != nil {
				failures <- err
				return
			}
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				failures <- err
			}
		})
	}
	clients.Wait()
	require.Empty(t, failures)
	require.NoError(t, lis.Close())
	servers.Wait()
}

func TestANameCanBeTakenOnceAndAgainWhenFree(t *testing.T) {
	t.Parallel()
	n := rpc.NewMemoryNetwork()
	lis, err := n.Listen("inventory")
	require.NoError(t, err)
	require.Equal(t, "inventory", lis.Addr().String())
	_, err = n.Listen("inventory")
	require.ErrorContains(t, err, "name in use")

	require.NoError(t, lis.Close())
	_, err = n.Dialer("inventory")(t.Context(), "")
	require.ErrorContains(t, err, "connection refused")

	second, err := n.Listen("inventory")
	require.NoError(t, err)
	require.NoError(t, lis.Close(), "closing the old one again")
	_, err = n.Listen("inventory")
	require.ErrorContains(t, err, "name in use", "does not free the name of the new one")
	require.NoError(t, second.Close())
}

func TestDialingWaitsForANameThatWasNeverListenedOn(t *testing.T) {
	t.Parallel()
	n := rpc.NewMemoryNetwork()
	dialed := make(chan error, 1)
	go func() {
		c, err := n.Dialer("late")(t.Context(), "")
		if err == nil {
			err = c.Close()
		}
		dialed <- err
	}()
	lis, err := n.Listen("late")
	require.NoError(t, err)
	c, err := lis.Accept()
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, <-dialed)
	require.NoError(t, lis.Close())

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = n.Dialer("never")(ctx, "")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestAServiceThatIsAwayIsNamed(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	conn := s.AsRole(t, rpcctx.RoleAdmin)
	require.NoError(t, doPing(t.Context(), conn))
	require.NoError(t, s.Stop())

	err := doPing(t.Context(), conn)

	require.Equal(t, errs.Unavailable, errs.KindOf(err))
	require.Equal(t, "SERVICE_UNAVAILABLE", errs.ReasonOf(err))
	require.Equal(t, "tested is not available", errs.From(err).Message())
	require.Equal(t, "tested", errs.MetaOf(err)["service"])
}

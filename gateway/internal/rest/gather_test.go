package rest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// behind is inventory, as far as it is asked for certificates: all but "missing" are there, and "bad" is refused.
type behind struct {
	mu      sync.Mutex
	calls   []string      // the methods that were called
	callers [][2]string   // role of the caller and the ids
	held    chan struct{} // nil, or what calls for several wait for
	arrived chan struct{} // gets one for each call for several
	failing map[rpcctx.Role]error
}

func (b *behind) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams here")
}

func (b *behind) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	caller := rpcctx.CallerFrom(ctx)
	b.note(method, caller.Role, fmt.Sprint(args))
	switch r := args.(type) {
	case *inventoryv1.GetCertificateRequest:
		if r.GetId() == "missing" {
			return errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "certificate %s not found", r.GetId())
		}
		return answer(reply, &inventoryv1.GetCertificateResponse{Certificate: &inventoryv1.Certificate{Id: r.GetId(), Name: "alone"}})
	case *inventoryv1.GetCertificatesRequest:
		if md, _ := metadata.FromOutgoingContext(ctx); md.Len() > 0 {
			return errors.New("metadata of one caller went with the others")
		}
		b.arrived <- struct{}{}
		<-b.held
		return b.several(caller, r.GetIds(), reply)
	}
	return fmt.Errorf("unexpected %s", method)
}

func (b *behind) several(caller rpcctx.Caller, ids []string, reply any) error {
	out := &inventoryv1.GetCertificatesResponse{}
	for _, id := range ids {
		switch id {
		case "missing":
		case "bad":
			return errs.Field("ids[0]", "is not valid")
		default:
			out.Certificates = append(out.Certificates, &inventoryv1.Certificate{Id: id, Name: string(caller.Role)})
		}
	}
	if err := b.failing[caller.Role]; err != nil {
		return err
	}
	return answer(reply, out)
}

func (b *behind) note(method string, role rpcctx.Role, args string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, method)
	b.callers = append(b.callers, [2]string{string(role), args})
}

func (b *behind) times(method string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.calls {
		if m == method {
			n++
		}
	}
	return n
}

func answer(reply any, with proto.Message) error {
	wire, err := proto.Marshal(with)
	if err != nil {
		return err
	}
	return proto.Unmarshal(wire, reply.(proto.Message)) //nolint:forcetypeassert // as grpc does
}

func getter(conn grpc.ClientConnInterface) func(ctx context.Context, role rpcctx.Role, id string) (string, error) {
	client := inventoryv1.NewCertificateServiceClient(unread{gather(conn)})
	return func(ctx context.Context, role rpcctx.Role, id string) (string, error) {
		ctx = rpcctx.WithCaller(ctx, rpcctx.Caller{Type: rpcctx.User, ID: "u", Role: role})
		ctx = metadata.AppendToOutgoingContext(ctx, "if-match", "7")
		a, err := client.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Id: id})
		if err != nil {
			return "", err
		}
		var e encoder
		text, err := e.marshal(a.GetCertificate())
		if err != nil {
			return "", err
		}
		c := &inventoryv1.Certificate{}
		if err := proto.Unmarshal(a.GetCertificate().ProtoReflect().GetUnknown(), c); err != nil {
			return "", err
		}
		if c.GetId() == "" { // it came alone, and was read
			c = a.GetCertificate()
		}
		return c.GetId() + " " + c.GetName(), errors.Join(err, notEmpty(text))
	}
}

func notEmpty(text []byte) error {
	if len(text) < len(`{"id":"x"}`) {
		return fmt.Errorf("written as %s", text)
	}
	return nil
}

// occupied has the one call under way that there may be at once, so that what is asked then is gathered until release.
func occupied(t *testing.T, b *behind) (get func(ctx context.Context, role rpcctx.Role, id string) (string, error), release func()) {
	t.Helper()
	b.held, b.arrived = make(chan struct{}), make(chan struct{}, 100)
	get = getter(b)
	first := run.Go(func() error {
		_, err := get(t.Context(), rpcctx.RoleAdmin, "first")
		return err
	})
	<-b.arrived
	return get, func() {
		synctest.Wait() // all who ask now are waiting
		close(b.held)
		require.NoError(t, <-first)
	}
}

const (
	several = inventoryv1.CertificateService_GetCertificates_FullMethodName
	alone   = inventoryv1.CertificateService_GetCertificate_FullMethodName
)

// ask asks for all at once and gives the answers.
func ask(t *testing.T, get func(ctx context.Context, role rpcctx.Role, id string) (string, error), role rpcctx.Role, ids ...string) func() (answers []string, failures []error) {
	t.Helper()
	answers, failures := make([]string, len(ids)), make([]error, len(ids))
	var asked []<-chan error
	for i, id := range ids {
		asked = append(asked, run.Go(func() error {
			answers[i], failures[i] = get(t.Context(), role, id)
			return nil
		}))
	}
	return func() ([]string, []error) {
		for _, a := range asked {
			<-a
		}
		return answers, failures
	}
}

func TestThoseWhoWantCertificatesAtTheSameTimeShareCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &behind{}
		get, release := occupied(t, b)
		var ids, want []string
		for i := range 40 {
			ids = append(ids, fmt.Sprintf("c-%d", i))
			want = append(want, fmt.Sprintf("c-%d viewer", i))
		}
		wait := ask(t, get, rpcctx.RoleViewer, ids...)
		release()
		got, failures := wait()
		require.NoError(t, errors.Join(failures...))
		require.Equal(t, want, got)
		require.Equal(t, 2, b.times(several), "the one that was under way, and one for all others")
		require.Zero(t, b.times(alone))
	})
}

func TestACallIsThatOfOneCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &behind{failing: map[rpcctx.Role]error{rpcctx.RoleAuditor: errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "inventory is not available")}}
		get, release := occupied(t, b)
		viewer, auditor := ask(t, get, rpcctx.RoleViewer, "a", "b"), ask(t, get, rpcctx.RoleAuditor, "a", "b")
		release()
		got, failures := viewer()
		require.NoError(t, errors.Join(failures...))
		require.Equal(t, []string{"a viewer", "b viewer"}, got, "the error of another caller is not theirs")
		_, failures = auditor()
		for _, err := range failures {
			require.True(t, errs.IsKind(err, errs.Unavailable))
		}
		require.Zero(t, b.times(alone), "who is away is not asked again")
	})
}

func TestWhatIsWrongIsToldToWhomItConcerns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &behind{}
		get, release := occupied(t, b)
		wait := ask(t, get, rpcctx.RoleViewer, "missing", "bad", "good")
		release()
		_, failures := wait()
		require.True(t, errs.IsKind(failures[0], errs.NotFound))
		require.ErrorContains(t, failures[0], "certificate missing not found")
		require.NoError(t, failures[1], "the fake knows it when it is asked alone")
		require.NoError(t, failures[2])
	})
}

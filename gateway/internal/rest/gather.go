package rest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// gathered is a connection to inventory on which those who want one certificate each at the same time share a call, which costs more
// than what it asks for. Only callers share who are the same, so that inventory judges each as if it had called alone.
type gathered struct {
	grpc.ClientConnInterface
	certificates *batch.Reads[wanted, certificate]
}

// wanted is what somebody asks for.
type wanted struct {
	caller rpcctx.Caller
	id     string
}

// certificate is one as it came, or why it did not.
type certificate struct {
	wire []byte
	err  error
}

func gather(conn grpc.ClientConnInterface) *gathered {
	g := &gathered{ClientConnInterface: conn}
	g.certificates = batch.NewReads(batch.ReadsConfig{AtOnce: 1}, g.fetch)
	return g
}

// Invoke makes a call, alone or with others. What is not found, or wrong with a call of several, is told by a call of one's own: its
// error speaks of what its caller has asked for.
func (g *gathered) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	request, asked := args.(*inventoryv1.GetCertificateRequest)
	answer, answered := reply.(*inventoryv1.GetCertificateResponse)
	if asked && answered {
		c, ok, err := g.certificates.Get(ctx, wanted{rpcctx.CallerFrom(ctx), request.GetId()})
		switch {
		case err != nil:
			return err //nolint:wrapcheck // the end of ctx
		case ok && c.err == nil:
			answer.Certificate = &inventoryv1.Certificate{}
			answer.Certificate.ProtoReflect().SetUnknown(c.wire) // see unread
			return nil
		case ok && gone(c.err):
			return c.err
		}
	}
	return g.ClientConnInterface.Invoke(ctx, method, args, reply, opts...) //nolint:wrapcheck // as grpc.ClientConnInterface has it
}

// gone tells that inventory was not there: to ask again would make it worse.
func gone(err error) bool {
	return errs.IsKind(err, errs.Unavailable) || errs.IsKind(err, errs.DeadlineExceeded)
}

// fetch asks for each caller. One's error is not that of others.
func (g *gathered) fetch(ctx context.Context, all []wanted) (map[wanted]certificate, error) {
	ids := make(map[rpcctx.Caller][]string)
	for _, w := range all {
		ids[w.caller] = append(ids[w.caller], w.id)
	}
	var mu sync.Mutex
	found := make(map[wanted]certificate, len(all))
	var calls []<-chan error
	for caller, ids := range ids {
		calls = append(calls, run.Go(func() error {
			certificates, err := g.call(ctx, caller, ids)
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				if wire, ok := certificates[id]; ok || err != nil {
					found[wanted{caller, id}] = certificate{wire, err}
				}
			}
			return nil
		}))
	}
	var panics error
	for _, call := range calls {
		panics = errors.Join(panics, <-call)
	}
	return found, panics
}

// call asks for certificates as one caller, without anything else of whose request came first.
func (g *gathered) call(ctx context.Context, caller rpcctx.Caller, ids []string) (map[string][]byte, error) {
	slices.Sort(ids)
	ctx = metadata.NewOutgoingContext(rpcctx.WithCaller(ctx, caller), metadata.MD{})
	answer, err := invoke(ctx, g.ClientConnInterface, inventoryv1.CertificateService_GetCertificates_FullMethodName, &inventoryv1.GetCertificatesRequest{Ids: ids})
	if err != nil {
		return nil, err
	}
	certificates := make(map[string][]byte, len(ids))
	eachBytes(answer, certificatesNumber, func(wire []byte) {
		eachBytes(wire, idNumber, func(id []byte) { certificates[string(id)] = wire })
	})
	return certificates, nil
}

// Numbers of the fields certificates of GetCertificatesResponse and id of Certificate.
const (
	certificatesNumber = 1
	idNumber           = 1
)

// eachBytes gives the values of a field of a message, up to where it cannot be read.
func eachBytes(wire []byte, number protowire.Number, do func([]byte)) {
	for len(wire) > 0 {
		found, typ, n := protowire.ConsumeTag(wire)
		if n < 0 {
			return
		}
		length := protowire.ConsumeFieldValue(found, typ, wire[n:])
		if length < 0 {
			return
		}
		if found == number && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(wire[n:])
			do(v)
		}
		wire = wire[n+length:]
	}
}

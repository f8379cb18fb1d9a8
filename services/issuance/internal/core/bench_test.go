package core

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// BenchmarkIssue measures whole orders of the local issuer: intent, signature, checks, result, events. The CSRs are made
// beforehand, as agents make them elsewhere.
//
//	go test ./issuance/internal/core -run '^$' -bench Issue -benchtime 5000x -cpu 8
func BenchmarkIssue(b *testing.B) {
	box, err := secretbox.NewBox(secretbox.GenerateKey())
	require.NoError(b, err)
	p := &peers{}
	c, err := New(Config{BootstrapLocalIssuer: true}, Deps{
		DB: testpg.New(b, store.Schema()), Box: box, Types: issuer.Types{local.Type()}, References: p, Poller: p,
	})
	require.NoError(b, err)
	ctx := b.Context()
	require.NoError(b, c.Bootstrap(ctx))
	requests := make(chan SubmitRequest, b.N)
	for range b.N {
		r := request(b, DefaultIssuerID)
		r.ProfileID = DefaultProfileID
		requests <- r
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			o, err := c.Submit(context.WithoutCancel(ctx), <-requests)
			if err != nil || o.Status != Issued {
				b.Errorf("order is %s: %v", o.Status, err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
}

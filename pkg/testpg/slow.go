package testpg

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/tick"
)

// Slow is a tracer that holds statements up and counts them.
type Slow struct {
	text string
	by   time.Duration
	n    atomic.Int64
}

// NewSlow holds up each statement that has the text in it.
func NewSlow(text string, by time.Duration) *Slow { return &Slow{text: text, by: by} }

// Seen is how many there were, those that are still held up included.
func (s *Slow) Seen() int { return int(s.n.Load()) }

// TraceQueryStart holds a statement up.
func (s *Slow) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.Contains(q.SQL, s.text) {
		s.n.Add(1)
		_ = tick.Wait(ctx, s.by)
	}
	return ctx
}

// TraceQueryEnd does nothing.
func (s *Slow) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

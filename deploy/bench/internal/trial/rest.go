package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// writer is the client of what is posted: rarely, so that its cost does not matter.
type writer struct {
	once   sync.Once
	client *http.Client
	// gateways, "host:port", are asked in turn; none: the site's.
	gateways []string
	turn     atomic.Uint64
}

// base is the address of the gateway whose turn it is.
func (b *bench) base() string {
	if len(b.writer.gateways) == 0 {
		return b.site.URL
	}
	return "https://" + b.writer.gateways[b.writer.turn.Add(1)%uint64(len(b.writer.gateways))]
}

// post sends a body and wants success; took, if given, gets how long that was.
func (b *bench) post(ctx context.Context, path string, body any, took *time.Duration) ([]byte, error) {
	b.writer.once.Do(func() {
		b.writer.client = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: b.site.TLS(), MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64}}
	})
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("write request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base()+path, bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bearer "+b.site.Key)
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := b.writer.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	if took != nil {
		*took = time.Since(began)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("post %s: %d: %.300s", path, resp.StatusCode, answer)
	}
	return answer, nil
}

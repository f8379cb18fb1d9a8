package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// maxAnswer bounds an answer over REST, bytes.
const maxAnswer = 1 << 20

// rest is the way to what a gateway has over REST alone.
type rest struct {
	access access
	client *http.Client
	limit  time.Duration
}

// answered is what came back.
type answered struct {
	status int
	text   string // of the status line
	header http.Header
	body   []byte
}

func (ac access) rest() (*rest, error) {
	config, err := ac.tls()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	return &rest{ac, &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, callTimeout}, nil
}

func (r *rest) close() { r.client.CloseIdleConnections() }

// get reads a path, with a header if its value is not empty. An error that is an *url.Error says that nobody answered.
func (r *rest) get(ctx context.Context, path, header, value string) (answered, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.access.url+path, http.NoBody)
	if err != nil {
		return answered{}, fmt.Errorf("ask for %s: %w", path, err)
	}
	if !r.access.key.IsZero() {
		req.Header.Set("Authorization", "Bearer "+r.access.key.Reveal())
	}
	if value != "" {
		req.Header.Set(header, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answered{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answered{}, fmt.Errorf("read %s: %w", path, err)
	}
	return answered{resp.StatusCode, resp.Status, resp.Header, body}, nil
}

// unreached explains why nobody answered over REST; other errors stay.
func (s *session) unreached(err error) error {
	var none *url.Error
	if !errors.As(err, &none) || isContext(err) {
		return err
	}
	if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
		s.handshake.set(untrusted)
	}
	f := &Failure{Code: exitError, cause: none.Err}
	s.adviseConnection(f)
	return f
}

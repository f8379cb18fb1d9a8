// Package web asks the REST API, cheaply: the load shares the cores with what it measures.
package web

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/valyala/fasthttp"
)

// timeout bounds one request.
const timeout = 30 * time.Second

// Client keeps one connection per worker.
type Client struct {
	base    string
	key     string
	host    *fasthttp.HostClient
	workers []worker
}

// worker has what is used again by the requests of one connection.
type worker struct {
	req  *fasthttp.Request
	resp *fasthttp.Response
}

// New makes a client for so many workers.
func New(address, key string, trust *tls.Config, workers int) *Client {
	c := &Client{base: "https://" + address, key: key, workers: make([]worker, workers)}
	trust = trust.Clone()
	trust.ServerName = "127.0.0.1"
	trust.ClientSessionCache = tls.NewLRUClientSessionCache(workers)
	c.host = &fasthttp.HostClient{Addr: address, IsTLS: true, TLSConfig: trust, MaxConns: workers, MaxIdleConnDuration: time.Hour,
		NoDefaultUserAgentHeader: true, ReadTimeout: timeout, WriteTimeout: timeout, MaxResponseBodySize: 64 << 20}
	for w := range c.workers {
		c.workers[w] = worker{req: fasthttp.AcquireRequest(), resp: fasthttp.AcquireResponse()}
	}
	return c
}

// Answer is what came back; Body is good until the worker's next request.
type Answer struct {
	Status int
	Body   []byte
	Tag    string
}

// Get asks for a path; tag is for If-None-Match, "" without.
func (c *Client) Get(w int, path, tag string) (Answer, error) {
	a := c.workers[w]
	a.req.Reset()
	a.resp.Reset()
	a.req.SetRequestURI(c.base + path)
	if c.key != "" {
		a.req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if tag != "" {
		a.req.Header.Set("If-None-Match", tag)
	}
	if err := c.host.Do(a.req, a.resp); err != nil {
		return Answer{}, fmt.Errorf("get %s: %w", path, err)
	}
	return Answer{Status: a.resp.StatusCode(), Body: a.resp.Body(), Tag: string(a.resp.Header.Peek("ETag"))}, nil
}

// Want asks for a path and takes another status than the wanted one for an error.
func (c *Client) Want(w int, path, tag string, status int) (Answer, error) {
	a, err := c.Get(w, path, tag)
	if err == nil && a.Status != status {
		return a, fmt.Errorf("get %s: %d, not %d: %.300s", path, a.Status, status, a.Body)
	}
	return a, err
}

// Close gives the connections back.
func (c *Client) Close() { c.host.CloseIdleConnections() }

package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certctl/certctl/pkg/tick"
)

// How the clients of TestFaultsUnderLoadLoseNothing ask.
const (
	chaosCreators = 2
	chaosWorkers  = 6 // that renew, update and revoke
	chaosReaders  = 2
	chaosAnswer   = 8 * time.Second // until a client thinks that no answer comes, and asks again
	chaosGivesUp  = 3 * time.Minute // until a client complains that it has no answer, or that a job has not ended
)

// chaosLoad is the clients, and what they know.
type chaosLoad struct {
	*fleet

	seed   uint64
	record chaosRecord
	hosts  []string // agents, those that work the most several times
	ending atomic.Bool
	made   atomic.Int64
	done   atomic.Int64 // writes that were followed to their end

	mu       sync.Mutex
	idle     []string       // certificates that nobody works on
	changes  map[string]int // of each certificate, for the keys of requests
	began    []time.Time    // of the writes that were followed to their end
	repeated map[string]int // why clients had to ask again
	waited   time.Duration  // the longest that one had to
	slowest  time.Duration  // the longest from a write to its end
	errs     []error
}

// client is one of them.
type client struct {
	*chaosLoad

	name    string
	as      string
	http    *http.Client
	choices *rand.Rand
	tags    map[string]string
}

// start has the clients work until stop, which waits for what they have begun.
func (c *chaosLoad) start(ctx context.Context) (stop func()) {
	var running sync.WaitGroup
	run := func(name, as string, n int, work func(context.Context, *client) error) {
		for i := range n {
			client := c.client(name, as, i)
			running.Go(func() {
				for !c.ending.Load() && ctx.Err() == nil {
					if err := work(ctx, client); err != nil {
						c.complain(fmt.Errorf("%s: %w", client.name, err))
					}
					_ = tick.Wait(ctx, 2*interval)
				}
			})
		}
	}
	run("creator", aliceKey, chaosCreators, createOne)
	run("worker", bobKey, chaosWorkers, changeOne)
	run("reader", viewerKey, chaosReaders, readOne)
	return func() {
		c.ending.Store(true)
		running.Wait()
	}
}

// client gives the n-th of a kind.
func (c *chaosLoad) client(kind, as string, n int) *client {
	one := &client{chaosLoad: c, name: fmt.Sprintf("%s %d", kind, n+1), as: as, http: c.newClient(n%2 == 1),
		choices: rand.New(rand.NewPCG(c.seed, uint64(len(kind)*100+n))), tags: map[string]string{}}
	one.http.Timeout = chaosAnswer
	return one
}

func (c *chaosLoad) complain(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

// ask repeats a request until it is answered. With its key that is harmless, also when there was no answer in time.
func (c *client) ask(ctx context.Context, q request) (r reply, err error) {
	began := time.Now()
	q.as = c.as
	for {
		e := exchange{Client: c.name, Method: q.method, Path: q.path, Key: q.id, IfNoneMatch: q.tag, Body: q.body, Start: time.Now()}
		r, err = c.once(ctx, c.http, q)
		e.End, e.Status, e.Tag, e.Answer = time.Now(), r.status, r.tag, r.body
		if err != nil {
			e.Error = err.Error()
		}
		c.record.add(e)
		why := askAgain(r, err)
		c.count(why, time.Since(began))
		switch {
		case why != "" && time.Since(began) > chaosGivesUp:
			return r, fmt.Errorf("%s %s: still %s after %s: %v %w", q.method, q.path, why, chaosGivesUp, r.body, cmp.Or(err, io.EOF))
		case why != "":
		case err != nil:
			return r, err
		case r.status >= http.StatusBadRequest:
			return r, fmt.Errorf("%s %s: %d: %v", q.method, q.path, r.status, r.body)
		default:
			return r, nil
		}
		_ = tick.Wait(ctx, 5*interval)
	}
}

// askAgain tells why a client may repeat a request: "" if it may not.
func askAgain(r reply, err error) string {
	var late interface{ Timeout() bool }
	if errors.As(err, &late) && late.Timeout() {
		return "no answer in time"
	}
	return again(r, err)
}

func (c *chaosLoad) count(why string, since time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why != "" {
		c.repeated[why]++
		return
	}
	c.waited = max(c.waited, since)
}

// finished books a write that was followed to its end.
func (c *chaosLoad) finished(id string, began time.Time, free bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = append(c.began, began)
	c.slowest = max(c.slowest, time.Since(began))
	if free {
		c.idle = append(c.idle, id)
	}
	c.done.Add(1)
}

// finishedSince counts the writes that were begun after a moment and have been followed to their end.
func (c *chaosLoad) finishedSince(moment time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, began := range slices.Backward(c.began) {
		if began.After(moment) {
			n++
		}
	}
	return n
}

// take gives a certificate that nobody works on, and the number of its next change.
func (c *client) take() (id string, change int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) == 0 {
		return "", 0
	}
	n := c.choices.IntN(len(c.idle))
	id = c.idle[n]
	c.idle = slices.Delete(c.idle, n, n+1)
	c.changes[id]++
	return id, c.changes[id]
}

// want asks for a certificate for the n-th agent.
func (c *client) want(ctx context.Context, id string, n int) error {
	s, err := c.site(id)
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, request{method: http.MethodPost, path: "/api/v1/targets", id: "target " + id, body: targetFor(id, c.hosts[n%len(c.hosts)], s)})
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, request{method: http.MethodPost, path: "/api/v1/certificates", id: "certificate " + id, body: certificateFor(id)})
	return err
}

// createOne makes a certificate for the next agent, and waits until it is there.
func createOne(ctx context.Context, c *client) error {
	n := c.made.Add(1)
	id := fmt.Sprintf("chaos-%05d", n)
	began := time.Now()
	if err := c.want(ctx, id, int(n)); err != nil {
		return err
	}
	for ctx.Err() == nil {
		r, err := c.ask(ctx, request{method: http.MethodGet, path: "/api/v1/jobs?certificate_id=" + id})
		if err != nil {
			return err
		}
		if jobs := r.body.list("jobs"); len(jobs) > 0 {
			err := c.follow(ctx, id, jobs[len(jobs)-1].str("id"))
			if err == nil {
				c.finished(id, began, true)
			}
			return err
		}
		_ = tick.Wait(ctx, 5*interval)
	}
	return ctx.Err()
}

// changeOne does one thing to a certificate that nobody else works on.
func changeOne(ctx context.Context, c *client) error {
	id, change := c.take()
	if id == "" {
		_ = tick.Wait(ctx, 5*interval)
		return nil
	}
	began := time.Now()
	var err error
	dice := c.choices.IntN(100)
	switch {
	case dice < 55:
		err = c.renew(ctx, id, change)
	case dice < 95:
		err = c.update(ctx, id, change)
	default:
		_, err = c.ask(ctx, request{method: http.MethodPost, path: "/api/v1/certificates/" + id + "/revoke", id: fmt.Sprintf("revoke %s %d", id, change),
			body: object{"reason": "SUPERSEDED"}})
	}
	if err != nil {
		return err // nobody works on it any more
	}
	c.finished(id, began, dice < 95)
	return nil
}

func (c *client) renew(ctx context.Context, id string, change int) error {
	r, err := c.ask(ctx, request{method: http.MethodPost, path: "/api/v1/certificates/" + id + "/renew", id: fmt.Sprintf("renew %s %d", id, change),
		body: object{"force": true}})
	if err != nil {
		return err
	}
	return c.follow(ctx, id, r.body.str("id"))
}

// update changes a certificate, and reads it in a list before and after.
func (c *client) update(ctx context.Context, id string, change int) error {
	list := "/api/v1/certificates?name=" + url.QueryEscape(id)
	r, err := c.ask(ctx, request{method: http.MethodGet, path: list})
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, request{method: http.MethodPatch, path: "/api/v1/certificates/" + id, id: fmt.Sprintf("update %s %d", id, change),
		body: object{"owner": fmt.Sprintf("owner-%d", change)}})
	if err != nil {
		return err
	}
	for range 2 {
		r, err = c.ask(ctx, request{method: http.MethodGet, path: list, tag: r.tag})
		if err != nil {
			return err
		}
	}
	return nil
}

// follow waits until a job has ended well.
func (c *client) follow(ctx context.Context, id, job string) error {
	for began := time.Now(); ctx.Err() == nil; {
		r, err := c.ask(ctx, request{method: http.MethodGet, path: "/api/v1/jobs/" + job})
		if err != nil {
			return err
		}
		switch status := r.body.str("status"); status {
		case "FAILED", "CANCELLED", "EXPIRED":
			return fmt.Errorf("job %s of %s is %s: %v", job, id, status, r.body)
		case "COMPLETED":
			return nil
		default:
			if time.Since(began) > chaosGivesUp {
				return fmt.Errorf("job %s of %s is still %s after %s: %v", job, id, status, chaosGivesUp, r.body)
			}
		}
		_ = tick.Wait(ctx, 5*interval)
	}
	return ctx.Err()
}

// readOne reads a list, with the tag that it has seen last.
func readOne(ctx context.Context, c *client) error {
	paths := []string{"/api/v1/certificates?page_size=50", "/api/v1/jobs?page_size=50", "/api/v1/agents?page_size=50", "/api/v1/deployments?page_size=50"}
	path := paths[c.choices.IntN(len(paths))]
	r, err := c.ask(ctx, request{method: http.MethodGet, path: path, tag: c.tags[path]})
	if err != nil {
		return err
	}
	c.tags[path] = r.tag
	_ = tick.Wait(ctx, 5*interval)
	return nil
}

// reasons tells why clients had to ask again.
func (c *chaosLoad) reasons() (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, why := range slices.Sorted(maps.Keys(c.repeated)) {
		all = append(all, fmt.Sprintf("%s: %d", why, c.repeated[why]))
	}
	return all
}

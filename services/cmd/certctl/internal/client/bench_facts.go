package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/pkg/version"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

const (
	healthPath       = "/health"
	certificatesPath = "/api/v1/certificates"

	// benchCallTimeout bounds one request.
	benchCallTimeout = 15 * time.Second
	// handshakes are how many new connections are timed.
	handshakes = 5
	// walkSize and walkPages bound how deep into the list is looked.
	walkSize  = 100
	walkPages = 50
	walkPause = 50 * time.Millisecond
	// historySize is how many of the last renewals are looked at.
	historySize = 500
)

// lookAround finds out who asks whom, and what there is.
func (b *bench) lookAround(ctx context.Context) error {
	if _, err := (&smoke{session: b.session}).ready(ctx); err != nil {
		return b.hinted(err, "what is not ready cannot be measured")
	}
	b.report.Client = benchClient{program{version.Version, version.Commit}, runtime.GOOS + "/" + runtime.GOARCH, runtime.NumCPU()}
	if err := b.read(ctx, versionPath, &b.report.Server); err != nil {
		return err
	}
	if err := b.read(ctx, "/api/v1/auth/check", &b.report.Caller); err != nil {
		return err
	}
	if role := b.report.Caller.Role; b.options.write && role != "admin" && role != "operator" {
		return &Failure{Message: fmt.Sprintf("the API key is %s's, whose role %s cannot have certificates issued", b.report.Caller.Name, role),
			Hint: "leave out --write, or give the key of an operator", Code: exitError}
	}
	summary, err := inventoryv1.NewStatsServiceClient(b.conn).GetSummary(ctx, &inventoryv1.GetSummaryRequest{})
	if err != nil {
		return err
	}
	b.report.Inventory = benchInventory{summary.GetCertificates(), summary.GetAgents(), summary.GetDeployments(), summary.GetJobs(), summary.GetStuck()}
	if n := summary.GetStuck(); n > 0 {
		b.report.note("%d rows are stuck: see certctl stats", n)
	}
	if err := b.policies(ctx); err != nil || !b.options.write {
		return err
	}
	return b.mayIssue(ctx)
}

// hinted adds where to go from an error that has no hint.
func (b *bench) hinted(err error, hint string) error {
	f, ok := b.explain(err).(*Failure) //nolint:errorlint // explain makes the Failure itself
	if !ok || f.Hint != "" {
		return err
	}
	named := *f
	named.Hint = hint
	return &named
}

// read reads JSON over the first connection.
func (b *bench) read(ctx context.Context, path string, into any) error {
	answer, err := b.conns[0].get(ctx, path, "", "")
	if err != nil {
		return b.unreached(err)
	}
	b.answered.Store(true)
	if answer.status != http.StatusOK {
		return b.refused(path, answer)
	}
	if err := json.Unmarshal(answer.body, into); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// refused is an answer that is not what was asked for.
func (b *bench) refused(path string, answer answered) error {
	f := &Failure{Message: fmt.Sprintf("%s answered %s", path, answer.text), Code: exitError}
	if p := problemOf(answer); p.Message != "" {
		f.Message += ": " + p.Message
	}
	switch answer.status {
	case http.StatusUnauthorized:
		f.Hint = b.adviseKey()
	case http.StatusTooManyRequests:
		f.Hint = "the API key is in use, and at its rate: measure with a key of its own"
	}
	return f
}

// refusal is how the gateway says no: a google.rpc.Status in JSON.
type refusal struct {
	Message string `json:"message"`
	Details []struct {
		Reason string `json:"reason"`
		Domain string `json:"domain"`
	} `json:"details"`
}

func problemOf(answer answered) refusal {
	var r refusal
	if json.Unmarshal(answer.body, &r) != nil {
		return refusal{}
	}
	return r
}

// ours tells whether certctl said no, and not something in front of it.
func (r refusal) ours() bool {
	for _, d := range r.Details {
		if d.Domain == errs.Domain {
			return true
		}
	}
	return false
}

// policies finds the policy that renews most often.
func (b *bench) policies(ctx context.Context) error {
	resp, err := schedulerv1.NewPolicyServiceClient(b.conn).ListPolicies(ctx, &schedulerv1.ListPoliciesRequest{PageSize: maxPage})
	if err != nil {
		return err
	}
	b.report.Policy = mostFrequent(resp.GetPolicies())
	return nil
}

// network times new connections, and the shortest answer that there is.
func (b *bench) network(ctx context.Context) error {
	n := &b.report.Network
	for _, r := range b.conns { // what comes later finds them open
		if _, err := r.get(ctx, healthPath, "", ""); err != nil {
			return b.unreached(err)
		}
	}
	tcp, tls := load.NewHistogram(), load.NewHistogram()
	for range handshakes {
		if err := b.handshakeTimes(ctx, tcp, tls); err != nil {
			return err
		}
	}
	n.TCP, n.TLS = tcp.Latency(), tls.Latency()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.access.url, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", b.access.url, err)
	}
	proxy, err := http.ProxyFromEnvironment(req)
	n.Proxy = err == nil && proxy != nil
	n.Health = load.Run(ctx, load.Plan{Rate: floorRate, Duration: 2 * time.Second, Workers: 1}, func(ctx context.Context, _, _ int) error {
		_, err := b.conns[0].get(ctx, healthPath, "", "")
		return err
	}).Latency
	return ctx.Err()
}

func (b *bench) handshakeTimes(ctx context.Context, tcp, secure *load.Histogram) error {
	r, err := b.access.rest()
	if err != nil {
		return err
	}
	defer r.close()
	var connecting sync.Map // by address: several of a name are tried at once
	var shaking time.Time
	_, err = r.get(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectStart: func(_, address string) { connecting.Store(address, time.Now()) },
		ConnectDone: func(_, address string, err error) {
			if begin, ok := connecting.Load(address); ok && err == nil {
				tcp.Add(time.Since(begin.(time.Time))) //nolint:errcheck // nothing else is in it
			}
		},
		TLSHandshakeStart: func() { shaking = time.Now() },
		TLSHandshakeDone:  func(tls.ConnectionState, error) { secure.Add(time.Since(shaking)) },
	}), healthPath, "", "")
	return b.unreached(err)
}

// findReads goes some pages into the list of certificates, without hurry, and makes the requests that are sent.
func (b *bench) findReads(ctx context.Context) error {
	first := certificatesPath + "?page_size=50"
	list := benchRead{name: "certificates, first page", paths: []string{first}}
	unchanged := benchRead{name: "certificates, unchanged", paths: []string{first}, conditional: true}
	b.reads = []benchRead{list, unchanged}
	var ids []string
	token := ""
	for range walkPages {
		var page struct {
			Certificates []struct {
				ID string `json:"id"`
			} `json:"certificates"`
			Next string `json:"next_page_token"`
		}
		if err := b.read(ctx, fmt.Sprintf("%s?page_size=%d&page_token=%s", certificatesPath, walkSize, url.QueryEscape(token)), &page); err != nil {
			return err
		}
		for _, c := range page.Certificates {
			ids = append(ids, certificatesPath+"/"+url.PathEscape(c.ID))
		}
		if page.Next == "" {
			break
		}
		token, b.report.Deepest = page.Next, len(ids)
		if err := tick.Wait(ctx, walkPause); err != nil {
			return err
		}
	}
	b.report.Rows = len(ids)
	if token != "" {
		b.reads = append(b.reads, benchRead{name: fmt.Sprintf("certificates, from row %d on", b.report.Deepest+1), paths: []string{first + "&page_token=" + url.QueryEscape(token)}})
	}
	if len(ids) > 0 {
		b.reads = append(b.reads, benchRead{name: "certificate by id", paths: ids})
	} else {
		b.report.note("there are no certificates: lists and counts were measured on nothing, which says little about what they take later")
	}
	b.reads = append(b.reads, benchRead{name: "jobs, first page", paths: []string{"/api/v1/jobs?page_size=50"}}, benchRead{name: "stats/summary", paths: []string{"/api/v1/stats/summary"}})
	return nil
}

// history looks at the last renewals: how long they took, and how many there were in an hour.
func (b *bench) history(ctx context.Context) error {
	var resp *schedulerv1.ListJobsResponse
	err := b.until(ctx, func(ctx context.Context) (done bool, err error) { // the key may have been at its rate a moment ago
		resp, err = schedulerv1.NewJobServiceClient(b.conn).ListJobs(ctx, &schedulerv1.ListJobsRequest{
			Type: []schedulerv1.Job_Type{schedulerv1.Job_RENEW}, Status: []schedulerv1.Job_Status{schedulerv1.Job_COMPLETED}, PageSize: historySize,
		})
		return err == nil, err
	})
	if err != nil {
		return err
	}
	b.report.History = historyOf(resp.GetJobs())
	return nil
}

// historyOf counts renewals; nil when there were none.
func historyOf(jobs []*schedulerv1.Job) *benchHistory {
	took, ends := load.NewHistogram(), make([]time.Time, 0, len(jobs))
	for _, j := range jobs {
		if j.GetEndTime() == nil || j.GetCreateTime() == nil {
			continue
		}
		end := j.GetEndTime().AsTime()
		took.Add(end.Sub(j.GetCreateTime().AsTime()))
		ends = append(ends, end)
	}
	if len(ends) == 0 {
		return nil
	}
	slices.SortFunc(ends, time.Time.Compare)
	h := &benchHistory{Renewals: len(ends), Latency: took.Latency()}
	first := 0
	for i, end := range ends {
		for end.Sub(ends[first]) > time.Hour {
			first++
		}
		h.MostInAnHour = max(h.MostInAnHour, i-first+1)
	}
	return h
}

func total(counts map[string]int32) (n int) {
	for c := range maps.Values(counts) {
		n += int(c)
	}
	return n
}

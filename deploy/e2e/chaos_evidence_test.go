package e2e_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// restQueries count what is not at rest. Each must come down to 0 by itself when nothing more is asked for.
func restQueries() map[string]string {
	return map[string]string{
		"open jobs":                          "SELECT count(*) FROM renewalscheduler.jobs WHERE end_time IS NULL",
		"plans that are due":                 "SELECT count(*) FROM renewalscheduler.plans WHERE due_time <= now()",
		"plans that wait for a job":          "SELECT count(*) FROM renewalscheduler.plans WHERE state IN ('WORKING', 'RETRYING')",
		"tasks to be taken back":             "SELECT count(*) FROM renewalscheduler.task_cancellations",
		"open orders":                        "SELECT count(*) FROM issuance.orders WHERE due_time IS NOT NULL",
		"orders that led to nothing":         "SELECT count(*) FROM issuance.orders WHERE end_time IS NOT NULL AND status <> 'ISSUED'",
		"revocations not done":               "SELECT count(*) FROM issuance.revocations WHERE status <> 'DONE'",
		"versions whose revocation is open":  "SELECT count(*) FROM inventory.certificate_versions WHERE revocation_state NOT IN ('', 'DONE')",
		"deployments that are not served":    "SELECT count(*) FROM inventory.deployments WHERE status <> 'SERVED'",
		"tasks that agents have":             "SELECT count(*) FROM inventory.assignments WHERE end_time IS NULL AND kind <> 'VERIFY'",
		"agents that are away":               "SELECT count(*) FROM inventory.agents WHERE status <> 'ONLINE'",
		"polls":                              "SELECT count(*) FROM asyncpoller.polls WHERE end_time IS NULL",
		"facts of inventory not told":        "SELECT count(*) FROM inventory.outbox",
		"facts of issuance not told":         "SELECT count(*) FROM issuance.outbox",
		"facts of renewalscheduler not told": "SELECT count(*) FROM renewalscheduler.outbox",
	}
}

// unrest counts what is not at rest.
func (c *chaos) unrest(ctx context.Context) (map[string]int, error) {
	conn, err := pgx.Connect(ctx, c.database)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	found := map[string]int{}
	for what, query := range restQueries() {
		var n int
		if err := conn.QueryRow(ctx, query).Scan(&n); err != nil {
			return nil, err
		}
		if n > 0 {
			found[what] = n
		}
	}
	return found, nil
}

// table reads the answer to a query.
func table[T any](c *chaos, conn *pgx.Conn, query string) []T {
	c.t.Helper()
	answer, err := conn.Query(c.t.Context(), query)
	require.NoError(c.t, err, query)
	list, err := pgx.CollectRows(answer, pgx.RowToStructByPos[T])
	require.NoError(c.t, err, query)
	return list
}

// gather collects what the checker judges by.
func (c *chaos) gather(e *evidence) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.database)
	require.NoError(c.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(c.t.Context())) }()
	e.Certificates = map[string]certificateRow{}
	for _, r := range table[certificateRow](c, conn, "SELECT id, status, owner, serial_number, fingerprint_sha256, current_version FROM inventory.certificates") {
		e.Certificates[r.ID] = r
	}
	e.Targets = map[string]bool{}
	for _, r := range table[struct{ ID string }](c, conn, "SELECT id FROM inventory.targets") {
		e.Targets[r.ID] = true
	}
	e.Versions = table[versionRow](c, conn, "SELECT certificate_id, version, order_id, serial_number, fingerprint_sha256 FROM inventory.certificate_versions")
	e.Deployments = table[deploymentRow](c, conn, "SELECT certificate_id, status, desired_version, served_version FROM inventory.deployments")
	e.Jobs = table[jobRow](c, conn, "SELECT id, type, state, certificate_id FROM renewalscheduler.jobs")
	e.Orders = table[orderRow](c, conn, "SELECT id, job_id, certificate_id, status, serial_number FROM issuance.orders")
	e.Issued = table[issuedRow](c, conn, "SELECT serial_number, order_id, certificate_id, fingerprint_sha256 FROM issuance.issued_certificates")
	e.Events = map[string]int{}
	for _, r := range table[struct {
		What string
		N    int
	}](c, conn, "SELECT action || ' ' || resource_id, count(*) FROM audit.events WHERE outcome = 'SUCCESS' GROUP BY 1") {
		e.Events[r.What] = r.N
	}
	e.Enrolled = len(table[struct{ ID string }](c, conn, "SELECT id FROM inventory.agents"))
	e.Restless, err = c.unrest(c.t.Context())
	require.NoError(c.t, err)
	stuck, _ := c.must(c.t, http.MethodGet, "/api/v1/stats/summary", nil)["stuck"].(float64)
	e.Restless["rows that services call stuck"] = int(stuck)
	c.readFiles(e)
	c.readViews(e)
	e.Chain = c.must(c.t, http.MethodPost, "/api/v1/audit/verify", object{})
	c.readProcesses(e)
}

// readFiles looks at what is served.
func (c *chaos) readFiles(e *evidence) {
	c.t.Helper()
	e.Served, e.Misfits = map[string]string{}, map[string]string{}
	for id := range e.Certificates {
		s, err := c.site(id)
		require.NoError(c.t, err)
		pair, err := tls.LoadX509KeyPair(s.fullchain, s.key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing is served
		}
		if err != nil {
			e.Misfits[id] = err.Error()
			continue
		}
		sum := sha256.Sum256(pair.Certificate[0])
		e.Served[id] = hex.EncodeToString(sum[:])
	}
}

// readViews reads the certificates through each gateway.
func (c *chaos) readViews(e *evidence) {
	c.t.Helper()
	e.Views = map[string]map[string]certificateRow{}
	for _, g := range c.of("gateway") {
		direct := c.as(rootKey)
		direct.url = "https://" + g.probe
		view := map[string]certificateRow{}
		for token := ""; ; {
			page := direct.must(c.t, http.MethodGet, "/api/v1/certificates?page_size=500&page_token="+url.QueryEscape(token), nil)
			for _, o := range page.list("certificates") {
				version, _ := o["current_version"].(float64)
				view[o.str("id")] = certificateRow{ID: o.str("id"), Status: o.str("status"), Owner: o.str("owner"), Serial: o.str("serial_number"),
					Fingerprint: o.str("fingerprint_sha256"), Version: int(version)}
			}
			token = page.str("next_page_token")
			if token == "" {
				break
			}
		}
		e.Views[g.name] = view
	}
}

// readProcesses finds those that fell over.
func (c *chaos) readProcesses(e *evidence) {
	c.t.Helper()
	for _, p := range c.processes {
		select {
		case <-p.done:
			e.Collapses = append(e.Collapses, p.name+" has ended by itself: "+p.err.Error())
		default:
		}
		if _, after, is := strings.Cut(p.output(), "panic:"); is {
			e.Collapses = append(e.Collapses, p.name+": panic:"+after[:min(len(after), 2000)])
		}
	}
}

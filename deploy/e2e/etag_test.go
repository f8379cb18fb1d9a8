package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// tagged are the lists with entity tags, and what their query looks like in the log of Postgres.
func tagged() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"/api/v1/certificates":            regexp.MustCompile(`(?s)FROM certificates c.*ORDER BY c\.create_time.*LIMIT`),
		"/api/v1/agents":                  regexp.MustCompile(`(?s)FROM agents a.*ORDER BY a\.create_time.*LIMIT`),
		"/api/v1/jobs":                    regexp.MustCompile(`(?s)FROM jobs j WHERE.*ORDER BY create_time DESC.*LIMIT`),
		"/api/v1/audit":                   regexp.MustCompile(`(?s)FROM events e WHERE.*ORDER BY sequence DESC.*LIMIT`),
		"/api/v1/discovered-certificates": regexp.MustCompile(`(?s)FROM discovered_certificates f.*ORDER BY f\.last_seen_time.*LIMIT`),
	}
}

// still are queries of the same lists whose answers no longer change, whatever agents and loops do.
func still() []string {
	return []string{
		"/api/v1/certificates?name=listed", "/api/v1/agents?status=RETIRED", "/api/v1/jobs?certificate_id=listed",
		"/api/v1/audit?resource_id=listed&action=certificate.created", "/api/v1/discovered-certificates",
	}
}

// created waits until the certificate of these tests is in all lists.
func (in *installation) created(t *testing.T) {
	t.Helper()
	in.wants(t, object{"id": "listed", "dns_names": []string{"listed.example.com"}})
	in.job(t, "listed", "AWAITING_CSR")
	in.wait(t, "the creation on the record", func() bool {
		return len(in.must(t, http.MethodGet, "/api/v1/audit?resource_id=listed&action=certificate.created", nil).list("events")) == 1
	})
}

func TestListsHaveEntityTags(t *testing.T) {
	t.Parallel()
	in := startOne(t, people)
	in.onlineAgent(t)
	in.created(t)

	t.Run("a repeat is 304 with the same headers", in.repeatsAreNotModified)
	t.Run("If-None-Match is read as RFC 9110 says", in.ifNoneMatch)
	t.Run("a change gives a new tag", in.changesGiveNewTags)
	t.Run("each caller has its own", in.callersHaveTheirOwn)
	t.Run("changes and refusals have none", in.onlyListsAreTagged)
	t.Run("an unchanged repeat costs one indexed read", in.repeatsCostOneRead)
	t.Run("a body over 64 KiB arrives whole", in.largeBodiesArriveWhole)
}

func hashTag(body string) string {
	sum := sha256.Sum256([]byte(body))
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// settled reads a list until two readings are alike: then nothing changes it any more by itself.
func (in *installation) settled(t *testing.T, path string) (a answer) {
	t.Helper()
	in.wait(t, path+" to settle", func() bool {
		a = in.get(t, path)
		return a.status == http.StatusOK && in.get(t, path).body == a.body
	})
	return a
}

func (in *installation) repeatsAreNotModified(t *testing.T) {
	for _, path := range still() {
		a := in.get(t, path)
		tag := a.header.Get("ETag")
		require.Equal(t, hashTag(a.body), tag, "%s: a strong tag over the body", path)
		require.Equal(t, "private, no-cache", a.header.Get("Cache-Control"))
		require.Contains(t, a.header.Values("Vary"), "Authorization")
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			again := in.send(t, call{method: method, path: path, header: map[string]string{"If-None-Match": tag}})
			require.Equal(t, http.StatusNotModified, again.status, "%s %s", method, path)
			require.Empty(t, again.body)
			require.Equal(t, tag, again.header.Get("ETag"))
			require.Equal(t, "private, no-cache", again.header.Get("Cache-Control"))
			require.Empty(t, again.header.Get("Content-Type"))
		}
		head := in.send(t, call{method: http.MethodHead, path: path})
		require.Equal(t, http.StatusOK, head.status)
		require.Empty(t, head.body)
		require.Equal(t, tag, head.header.Get("ETag"))
		require.Equal(t, fmt.Sprint(len(a.body)), head.header.Get("Content-Length"))
		with := in.get(t, path, "If-None-Match", `"another"`)
		require.Equal(t, a.body, with.body, "the bytes are the same with and without a condition")
	}
}

func (in *installation) ifNoneMatch(t *testing.T) {
	const path = "/api/v1/certificates"
	tag := in.settled(t, path).header.Get("ETag")
	for header, want := range map[string]int{
		"*": 304, tag: 304, "W/" + tag: 304, `"a", ` + tag: 304, `"a,b" , W/` + tag + `,"c"`: 304, `, ,` + tag: 304,
		`"a"`: 200, `"a", W/"b"`: 200, strings.Trim(tag, `"`): 200, `"*"`: 200, "w/" + tag: 200, tag[:10] + `"`: 200,
	} {
		require.Equal(t, want, in.get(t, path, "If-None-Match", header).status, header)
	}
}

func (in *installation) changesGiveNewTags(t *testing.T) {
	const path = "/api/v1/certificates?issuer_id=iss-local"
	change := func(change call) {
		before := in.settled(t, path)
		a := in.send(t, change)
		require.Less(t, a.status, 300, a.body)
		after := in.get(t, path, "If-None-Match", before.header.Get("ETag")) // at once: the very next reading
		require.Equal(t, http.StatusOK, after.status, "%s %s", change.method, change.path)
		require.NotEqual(t, before.header.Get("ETag"), after.header.Get("ETag"))
		require.Equal(t, hashTag(after.body), after.header.Get("ETag"))
	}
	change(post("/api/v1/certificates", object{"id": "second", "name": "second", "dns_names": []string{"second.example.com"}, "issuer_id": "iss-local"}))
	change(call{method: http.MethodPatch, path: "/api/v1/certificates/second", body: object{"owner": "ada"}})
	change(call{method: http.MethodDelete, path: "/api/v1/certificates/second"})

	jobs := in.get(t, "/api/v1/jobs").header.Get("ETag")
	in.issues(t, object{"id": "third", "dns_names": []string{"third.example.com"}})
	require.Equal(t, http.StatusOK, in.get(t, "/api/v1/jobs", "If-None-Match", jobs).status)
	in.wait(t, "the change on the record", func() bool {
		return in.get(t, "/api/v1/audit?resource_id=third").status == http.StatusOK &&
			len(in.get(t, "/api/v1/audit?resource_id=third&action=version.stored").object(t).list("events")) == 1
	})

	// A change that the list does not show raises the revision and leaves the tag: the bytes are the same.
	other := in.settled(t, "/api/v1/certificates?name=listed")
	in.send(t, call{method: http.MethodPatch, path: "/api/v1/certificates/third", body: object{"team": "web"}})
	require.Equal(t, http.StatusNotModified, in.get(t, "/api/v1/certificates?name=listed", "If-None-Match", other.header.Get("ETag")).status)
}

func (in *installation) callersHaveTheirOwn(t *testing.T) {
	const path = "/api/v1/audit?resource_id=listed&action=certificate.created"
	in.wait(t, "the certificate to be on the record", func() bool { return strings.Contains(in.get(t, path).body, "certificate.created") })
	tag := in.get(t, path).header.Get("ETag")
	require.Equal(t, http.StatusNotModified, in.get(t, path, "If-None-Match", tag).status)
	for _, condition := range []string{tag, "*"} {
		in.as(viewerKey).get(t, path, "If-None-Match", condition).refused(t, roleTooSmall())
		a := in.as(nobody).get(t, path, "If-None-Match", condition)
		a.refused(t, refusal{status: 401, code: 16, reason: "CREDENTIAL_MISSING"})
		require.Empty(t, a.header.Get("ETag"))
	}
	require.Equal(t, http.StatusNotModified, in.as(auditKey).get(t, path, "If-None-Match", tag).status, "the same bytes have the same tag")
}

func (in *installation) onlyListsAreTagged(t *testing.T) {
	for _, path := range []string{"/api/v1/certificates/listed", "/api/v1/profiles", "/api/v1/version", "/api/v1/stats/summary"} {
		a := in.get(t, path, "If-None-Match", "*")
		require.Equal(t, http.StatusOK, a.status, path)
		require.Empty(t, a.header.Get("ETag"), path)
	}
	for path, status := range map[string]int{
		"/api/v1/certificates?page_size=-1": 400, "/api/v1/certificates?colour=red": 400, "/api/v1/jobs?page_token=x": 400, "/api/v1/certificates/none": 404,
	} {
		a := in.get(t, path, "If-None-Match", "*")
		require.Equal(t, status, a.status, path)
		require.Empty(t, a.header.Get("ETag"), path)
		require.NotEmpty(t, a.body)
	}
	made := in.send(t, call{
		method: http.MethodPost, path: "/api/v1/certificates", header: map[string]string{"If-None-Match": "*"},
		body: object{"name": "posted", "dns_names": []string{"posted.example.com"}, "issuer_id": "iss-local"},
	})
	require.Equal(t, http.StatusCreated, made.status, made.body)
	require.Empty(t, made.header.Get("ETag"))
	require.Equal(t, "posted", made.object(t).str("name"))
	in.job(t, made.object(t).str("id"), "AWAITING_CSR")
}

// statements are what Postgres has run since the log had a size.
func (in *installation) statements(t *testing.T, since int64) []string {
	t.Helper()
	f, err := os.Open(filepath.Join(in.dir, "postgres.log"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size()-since)
	_, err = f.ReadAt(b, since)
	require.NoError(t, err)
	var out []string
	for _, entry := range regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d `).Split(string(b), -1) {
		if strings.Contains(entry, "LOG:  execute ") || strings.Contains(entry, "LOG:  statement: ") {
			out = append(out, entry)
		}
	}
	return out
}

func (in *installation) logSize(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(in.dir, "postgres.log"))
	require.NoError(t, err)
	return info.Size()
}

func count(statements []string, what *regexp.Regexp) (n int) {
	for _, s := range statements {
		if what.MatchString(s) {
			n++
		}
	}
	return n
}

// repeatsCostOneRead has Postgres log its statements, and counts.
func (in *installation) repeatsCostOneRead(t *testing.T) {
	db := in.database(t)
	for _, sql := range []string{"ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()"} {
		_, err := db.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	revision := regexp.MustCompile(`SELECT coalesce\(sum\(revision\), 0\)::bigint FROM collection_revisions WHERE collection = \$1`)
	const repeats, rounds = 50, 20
	// Each list has a reader of its own: together they ask more often than one caller may.
	readers := map[string]string{
		"/api/v1/certificates": viewerKey, "/api/v1/agents": aliceKey, "/api/v1/jobs": bobKey, "/api/v1/audit": auditKey, "/api/v1/discovered-certificates": rootKey,
	}
	for path, list := range tagged() {
		t.Run(path, func(t *testing.T) {
			who := in.as(readers[path])
			// This query was never asked before: the list is read, and what counts it sees it.
			fresh := path + "?page_size=77"
			in.wait(t, "the statements in the log", func() bool {
				since := in.logSize(t)
				require.Equal(t, http.StatusOK, who.get(t, path+"?page_size=76", "X-Request-Id", "warm-up").status)
				return count(in.statements(t, since), revision) > 0
			})
			since := in.logSize(t)
			require.NotEmpty(t, who.get(t, fresh).header.Get("ETag"))
			require.Equal(t, 1, count(in.statements(t, since), list), "the first reading runs the query")

			// Agents and the record change by themselves now and then; such a round says nothing.
			for round := range rounds {
				before := revisions(t, db)
				if ran, ok := who.repeats(t, fresh, repeats); ok && revisions(t, db) == before {
					require.Zero(t, count(ran, list), "an unchanged list was read again")
					require.Equal(t, repeats, count(ran, revision), "one indexed read for each")
					return
				}
				t.Logf("round %d: the list has changed", round)
			}
			require.Fail(t, "the list never stands still")
		})
	}
	var plan string
	require.NoError(t, db.QueryRow(t.Context(), `SELECT indexdef FROM pg_indexes WHERE schemaname = 'inventory' AND tablename = 'collection_revisions'`).Scan(&plan))
	require.Contains(t, plan, "(collection, shard)")
}

// repeats reads a list again and again with the tag it has, and gives what Postgres ran meanwhile; ok is false when the
// list has changed.
func (in *installation) repeats(t *testing.T, path string, n int) (ran []string, ok bool) {
	t.Helper()
	tag := in.get(t, path).header.Get("ETag")
	since := in.logSize(t)
	for range n {
		if in.get(t, path, "If-None-Match", tag).status != http.StatusNotModified {
			return nil, false
		}
	}
	return in.statements(t, since), true
}

// revisions are those of all collections together.
func revisions(t *testing.T, db *pgx.Conn) (sum int64) {
	t.Helper()
	for _, schema := range []string{"inventory", "renewalscheduler", "audit"} {
		var n int64
		err := db.QueryRow(t.Context(), "SELECT coalesce(sum(revision), 0)::bigint FROM "+schema+".collection_revisions").Scan(&n)
		require.NoError(t, err)
		sum += n
	}
	return sum
}

func (in *installation) largeBodiesArriveWhole(t *testing.T) {
	const large = 130
	_, err := in.database(t).Exec(t.Context(), `INSERT INTO inventory.certificates
SELECT (jsonb_populate_record(c, jsonb_build_object('id', 'copy-' || n, 'owner', repeat('x', 200)))).*
  FROM inventory.certificates c, generate_series(1, $1::int) n WHERE c.id = 'listed'`, large)
	require.NoError(t, err)
	const path = "/api/v1/certificates?page_size=1000&include_total=true"
	for _, condition := range []string{"", "*", `"a"`} {
		a := in.get(t, path, "If-None-Match", condition)
		require.Equal(t, http.StatusOK, a.status, condition)
		require.Greater(t, len(a.body), 64<<10)
		require.Empty(t, a.header.Get("ETag"), "it is not kept back for a tag")
		o := a.object(t)
		require.EqualValues(t, len(o.list("certificates")), o["total_size"])
		require.Greater(t, len(o.list("certificates")), large)
	}
}

func TestAReplicaOfTheGatewayTagsAlike(t *testing.T) {
	t.Parallel()
	one := startSix(t, people)
	two := one.replica(t)
	one.created(t)
	for _, path := range still() {
		tag := one.get(t, path).header.Get("ETag")
		require.NotEmpty(t, tag)
		require.Equal(t, http.StatusNotModified, two.get(t, path, "If-None-Match", tag).status, "%s: the other gateway has never seen the list", path)
		require.Equal(t, http.StatusNotModified, two.get(t, path, "If-None-Match", tag).status, path)
	}
	const path = "/api/v1/certificates"
	for i, pair := range [][2]*installation{{one, two}, {two, one}, {one, two}} {
		writer, reader := pair[0], pair[1]
		tag := reader.settled(t, path).header.Get("ETag")
		require.Equal(t, http.StatusNotModified, reader.get(t, path, "If-None-Match", tag).status)
		owner := fmt.Sprintf("owner-%d", i)
		writer.send(t, call{method: http.MethodPatch, path: path + "/listed", body: object{"owner": owner}})
		after := reader.get(t, path, "If-None-Match", tag) // at once
		require.Equal(t, http.StatusOK, after.status)
		require.Equal(t, owner, after.object(t).list("certificates")[0].str("owner"))
		require.NotEqual(t, tag, after.header.Get("ETag"))
		require.Equal(t, after.header.Get("ETag"), writer.get(t, path).header.Get("ETag"))
	}
	// A page token of one gateway is good at the other.
	one.wants(t, object{"id": "other", "dns_names": []string{"other.example.com"}})
	token := one.get(t, path+"?page_size=1").object(t).str("next_page_token")
	require.Equal(t, []string{"listed"}, ids(two.get(t, path+"?page_size=1&page_token="+token).object(t).list("certificates")))

	// While the owner of a list is away nothing is answered from memory, and what is answered has no tag.
	const record = "/api/v1/audit?resource_id=listed&action=certificate.created"
	tag := two.get(t, record).header.Get("ETag")
	one.processes["audit"].kill(t)
	for _, condition := range []string{"*", tag} {
		a := two.get(t, record, "If-None-Match", condition)
		a.refused(t, refusal{status: 503, code: 14, reason: "SERVICE_UNAVAILABLE", says: "audit"})
		require.Empty(t, a.header.Get("ETag"))
	}
	two.wait(t, "the gateway to say so", func() bool { return two.get(t, "/ready").status == http.StatusServiceUnavailable })
	require.Equal(t, http.StatusOK, two.get(t, path).status, "the others go on")
	one.processes["audit"].start(t)
	two.ready(t)
	require.Equal(t, http.StatusNotModified, two.get(t, record, "If-None-Match", tag).status)
}

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/testpg"
)

// SQLSTATE codes (PostgreSQL manual, appendix A).
const (
	notAllowed         = "42501"
	tooManyConnections = "53300"
)

// quotas are the connections of each service, as the settings have them unless they are told otherwise.
var quotas = map[string]int{"inventory": 16, "issuance": 12, "renewalscheduler": 12, "asyncpoller": 6, "audit": 4}

// refuse runs the server's program, which has to end by itself and not well, and gives what it said.
func refuse(t *testing.T, settings []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.certctl, args...)
	cmd.Env = append(environment("CERTCTL_DATA_DIR="+testpg.Dir(t), "CERTCTL_LISTEN_ADDR="+targettest.FreeAddress(t)), settings...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "it went on:\n%s", out)
	require.Error(t, err, "%s", out)
	require.Equal(t, 1, cmd.ProcessState.ExitCode(), "%s", out)
	return string(out)
}

// waits runs audit apart until it says that it waits for the database, and why.
func waits(t *testing.T, settings []string, words ...string) {
	t.Helper()
	p := &process{name: "audit", path: binaries.certctl, args: []string{"serve", "--service", "audit"},
		env: append(environment("CERTCTL_DATA_DIR="+testpg.Dir(t), "CERTCTL_GRPC_LISTEN_ADDR="+targettest.FreeAddress(t)), settings...)}
	in := &installation{processes: map[string]*process{}}
	in.add(t, p)
	in.wait(t, "word of the wait", func() bool { return strings.Contains(p.output(), "waiting for the database") })
	says(t, p.output(), words...)
	_, err := p.stop(t)
	require.NoError(t, err, "who waits is told to end and does")
}

func says(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		require.Contains(t, out, w)
	}
}

// migrated makes the schemas and roles of an installation on a server of its own.
func migrated(t *testing.T, databaseURL string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.certctl, "migrate")
	cmd.Env = environment("CERTCTL_DATABASE_URL="+databaseURL, "CERTCTL_DATA_DIR="+testpg.Dir(t))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestADatabaseThatRefusesExplainsWhatToDo(t *testing.T) {
	t.Parallel()
	const old, changed = "the first password", "another password"
	db := testpg.NewServer(t, testpg.ServerConfig{Password: old})
	apart := "CERTCTL_INTERNAL_SECRET=a secret of services in tests"

	out := refuse(t, []string{"CERTCTL_DATABASE_URL=" + db.TCPURL("postgres", "wrong")}, "serve")
	says(t, out, "28P01", `"certctl"`, "Two ways out", "put the old password back", "ALTER ROLE", "certctl migrate")
	require.NotContains(t, out, "wrong")

	out = refuse(t, []string{"CERTCTL_DATABASE_URL=" + db.TCPURL("nowhere", old)}, "serve")
	says(t, out, "3D000", `"nowhere" does not exist`, "CREATE DATABASE", "CERTCTL_DATABASE_URL")
	require.NotContains(t, out, old)

	// A service that runs apart says the same and waits: what it needs is made beside it. The role is not there, and Postgres does
	// not tell who asks.
	waits(t, []string{"CERTCTL_DATABASE_URL=" + db.TCPURL("postgres", old), apart}, "certctl_audit", "28P01", "certctl migrate")

	migrated(t, db.TCPURL("postgres", old))
	query(t, db.URL(), "ALTER ROLE certctl PASSWORD '"+changed+"'")
	waits(t, []string{"CERTCTL_DATABASE_URL=" + db.TCPURL("postgres", changed), apart}, "28P01", "certctl_audit", "Two ways out")
	migrated(t, db.TCPURL("postgres", changed)) // the second way out
	p := &process{name: "audit", path: binaries.certctl, args: []string{"serve", "--service", "audit"}, env: environment(apart,
		"CERTCTL_DATABASE_URL="+db.TCPURL("postgres", changed), "CERTCTL_DATA_DIR="+testpg.Dir(t), "CERTCTL_GRPC_LISTEN_ADDR="+targettest.FreeAddress(t))}
	in := &installation{processes: map[string]*process{}}
	in.add(t, p)
	in.wait(t, "audit to connect", func() bool {
		return len(rows(t, db.URL(), "SELECT usename FROM pg_stat_activity WHERE usename = 'certctl_audit'")) > 0
	})
}

func TestAServerThatFindsNoPostgresSaysSoAndWaitsForIt(t *testing.T) {
	t.Parallel()
	db := testpg.NewServer(t, testpg.ServerConfig{Password: "a password"})
	db.Stop(t)
	dir, address := testpg.Dir(t), targettest.FreeAddress(t)
	p := &process{name: "certctl", path: binaries.certctl, args: []string{"serve"},
		env: environment("CERTCTL_DATABASE_URL="+db.TCPURL("postgres", "a password"), "CERTCTL_DATA_DIR="+dir, "CERTCTL_LISTEN_ADDR="+address)}
	in := &installation{dir: dir, url: "https://" + address, processes: map[string]*process{}, server: []string{"certctl"}, caFile: dir + "/ca.crt"}
	in.add(t, p)
	const waits, why = "waiting for the database", "start Postgres, or mend host and port in CERTCTL_DATABASE_URL"
	in.wait(t, "word of the wait", func() bool { return strings.Contains(p.output(), waits) })
	says(t, p.output(), `"at_most": 60,`, "nothing listens on 127.0.0.1:", why)

	_, err := p.stop(t) // who does not want to wait need not
	require.Error(t, err)
	require.Equal(t, 1, p.cmd.ProcessState.ExitCode())
	says(t, p.output(), "certctl: ", why)

	p.start(t)
	in.wait(t, "word of the second wait", func() bool { return strings.Count(p.output(), waits) == 2 })
	db.Start(t)
	in.ready(t)
}

func TestQuotasThatDoNotAddUpStopTheStart(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"fewer connections than quotas": {"CERTCTL_DATABASE_MAX_CONNS=40"},
		"more quotas than connections":  {"CERTCTL_DATABASE_POOL_QUOTAS=inventory=16,issuance=12,renewalscheduler=12,asyncpoller=6,audit=14", "CERTCTL_DATABASE_MAX_CONNS=50"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{{"serve"}, {"serve", "--service", "audit"}, {"migrate"}, {"config", "check"}} {
				out := refuse(t, settings, args...)
				says(t, out, "CERTCTL_DATABASE_POOL_QUOTAS", "CERTCTL_DATABASE_MAX_CONNS")
				if len(settings) == 1 {
					says(t, out, "add up to 50", "is 40")
				} else {
					says(t, out, "add up to 60", "is 50")
				}
			}
		})
	}
}

func TestServicesSeeTheirOwnSchemaOnly(t *testing.T) {
	t.Parallel()
	db := testpg.NewServer(t, testpg.ServerConfig{})
	migrated(t, db.URL())
	for _, service := range []string{"inventory", "issuance", "renewalscheduler", "asyncpoller", "audit"} {
		conn, err := pgx.Connect(t.Context(), asRole(t, db.URL(), service))
		require.NoError(t, err)
		own, foreign := 0, 0
		for _, table := range rows(t, db.URL(), "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = ANY('{inventory,issuance,renewalscheduler,asyncpoller,audit}') AND tablename <> 'goose_db_version'") {
			_, err := conn.Exec(t.Context(), "SELECT 1 FROM "+table+" LIMIT 1")
			if strings.HasPrefix(table, service+".") {
				require.NoError(t, err, "%s reads %s", service, table)
				own++
				continue
			}
			requireState(t, err, notAllowed, service+" reads "+table)
			foreign++
		}
		require.Positive(t, own)
		require.Positive(t, foreign)
		if service == "audit" {
			for _, statement := range []string{"UPDATE audit.events SET action = ''", "DELETE FROM audit.events", "TRUNCATE audit.events"} {
				_, err := conn.Exec(t.Context(), statement)
				requireState(t, err, notAllowed, statement)
			}
		}
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestTheDatabaseRefusesTheConnectionAfterTheLast(t *testing.T) {
	t.Parallel()
	db := testpg.NewServer(t, testpg.ServerConfig{})
	migrated(t, db.URL())
	require.Equal(t, []string{"50"}, rows(t, db.URL(), "SELECT sum(rolconnlimit)::text FROM pg_roles WHERE rolname LIKE 'certctl\\_%'"))
	var open []*pgx.Conn
	for service, quota := range quotas {
		for range quota {
			conn, err := pgx.Connect(t.Context(), asRole(t, db.URL(), service))
			require.NoError(t, err, "connection %d of %s", len(open), service)
			open = append(open, conn)
		}
	}
	require.Len(t, open, 50)
	for service := range quotas {
		_, err := pgx.Connect(t.Context(), asRole(t, db.URL(), service))
		requireState(t, err, tooManyConnections, "the connection of "+service+" after its last")
	}
	for _, conn := range open {
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestAnInstallationUnderLoadStaysWithinItsConnections(t *testing.T) {
	t.Parallel()
	db := testpg.NewServer(t, testpg.ServerConfig{})
	in := startOne(t, "CERTCTL_DATABASE_URL="+db.URL())
	l := &load{in: in, agent: in.onlineAgent(t)}
	stop := l.start(t.Context(), 8)
	most := 0
	in.wait(t, "load", func() bool {
		most = max(most, len(rows(t, db.URL(), "SELECT pid::text FROM pg_stat_activity WHERE usename LIKE 'certctl\\_%'")))
		return l.answered.Load() >= 60
	})
	stop()
	require.NoError(t, errors.Join(l.errs...))
	t.Logf("at most %d connections", most)
	require.LessOrEqual(t, most, 50)
	require.NotContains(t, in.processes["certctl"].output(), tooManyConnections)
	for _, id := range l.ids {
		require.Equal(t, http.StatusOK, in.status(t, "/api/v1/certificates/"+id))
	}
}

// status reads and gives the status.
func (in *installation) status(t *testing.T, path string) int {
	t.Helper()
	status, _, err := in.try(t.Context(), http.MethodGet, path, nil)
	require.NoError(t, err)
	return status
}

// asRole changes an address to that of a service's role.
func asRole(t *testing.T, databaseURL, service string) string {
	t.Helper()
	config, err := pgx.ParseConfig(databaseURL)
	require.NoError(t, err)
	return fmt.Sprintf("host=%s port=%d user=certctl_%s dbname=%s", config.Host, config.Port, service, config.Database)
}

func requireState(t *testing.T, err error, code, what string) {
	t.Helper()
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused, "%s", what)
	require.Equal(t, code, refused.Code, "%s: %v", what, err)
}

// query runs a statement as the superuser, rows gives the first column of its answer.
func query(t *testing.T, databaseURL, statement string) {
	t.Helper()
	rows(t, databaseURL, statement)
}

func rows(t *testing.T, databaseURL, statement string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
	answer, err := conn.Query(t.Context(), statement)
	require.NoError(t, err)
	list, err := pgx.CollectRows(answer, pgx.RowTo[string])
	require.NoError(t, err)
	return list
}

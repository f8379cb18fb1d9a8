// Package gauge reads what an installation has used: CPU and memory of its processes, and statements of its database.
package gauge

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ticks of the kernel in a second (USER_HZ), which has been 100 on all Linux systems that Go runs on.
const ticks = 100

// Processes are the ids of processes by a name; several may have one name.
type Processes map[string][]int

// CPU is the CPU time that processes have used, by name.
type CPU map[string]time.Duration

// CPU reads what the processes have used, with their children, also those that have ended: the children of the postmaster are
// Postgres. Those of this process are not its own.
func (p Processes) CPU() (CPU, error) {
	children, err := childrenOf()
	if err != nil {
		return nil, err
	}
	used := CPU{}
	for name, ids := range p {
		for _, id := range ids {
			for _, member := range withChildren(id, children) {
				used[name] += cpuOf(member, member == id && id != os.Getpid())
			}
		}
	}
	return used, nil
}

// Since gives what was used from one reading to another.
func (c CPU) Since(before CPU) CPU {
	d := CPU{}
	for name, used := range c {
		d[name] = used - before[name]
	}
	return d
}

// Total adds all up.
func (c CPU) Total() (sum time.Duration) {
	for _, used := range c {
		sum += used
	}
	return sum
}

// Seconds gives the same as numbers.
func (c CPU) Seconds() map[string]float64 {
	m := map[string]float64{}
	for name, used := range c {
		m[name] = used.Seconds()
	}
	return m
}

// Memory reads the proportional set size of the processes, in bytes, with their children: pages that several share count once.
func (p Processes) Memory() (map[string]int64, error) {
	children, err := childrenOf()
	if err != nil {
		return nil, err
	}
	used := map[string]int64{}
	for name, ids := range p {
		for _, id := range ids {
			for _, member := range withChildren(id, children) {
				used[name] += pssOf(member)
			}
		}
	}
	return used, nil
}

func withChildren(pid int, children map[int][]int) []int {
	if pid == os.Getpid() {
		return []int{pid}
	}
	return append([]int{pid}, children[pid]...)
}

// stat reads the fields of /proc/PID/stat after the name of the program (proc(5)): the first is the state. Nil: it has ended.
func stat(pid int) []string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// The places in what stat gives.
const (
	fieldParent = 1
	fieldUser   = 11
	fieldSystem = 12
	fieldEnded  = 13 // of children that have ended, user and system
)

func cpuOf(pid int, withEnded bool) time.Duration {
	fields := stat(pid)
	last := fieldSystem
	if withEnded {
		last = fieldEnded + 1
	}
	if len(fields) <= last {
		return 0
	}
	var sum int64
	for _, text := range fields[fieldUser : last+1] {
		n, _ := strconv.ParseInt(text, 10, 64) // the kernel writes numbers
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks
}

func childrenOf() (map[int][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if fields := stat(pid); len(fields) > fieldParent {
			parent, _ := strconv.Atoi(fields[fieldParent])
			children[parent] = append(children[parent], pid)
		}
	}
	return children, nil
}

func pssOf(pid int) int64 {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// Database is what a database has done, from pg_stat_statements and pg_stat_database.
type Database struct {
	// Statements are the calls of everything but BEGIN, COMMIT and their like; Transactions are those of COMMIT and ROLLBACK: a
	// statement by itself counts as a statement alone.
	Statements, Transactions int64
	Rows                     int64
	Connections              map[string]int
}

// Reset forgets all statements up to now.
func Reset(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SELECT public.pg_stat_statements_reset()`); err != nil {
		return fmt.Errorf("reset statistics of statements: %w", err)
	}
	return nil
}

// others excludes the reader's own statements.
const others = ` JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname LIKE 'certctl\_%'`

// ReadDatabase reads what the services have done since Reset.
func ReadDatabase(ctx context.Context, conn *pgx.Conn) (Database, error) {
	d := Database{Connections: map[string]int{}}
	err := conn.QueryRow(ctx, `SELECT COALESCE(sum(calls) FILTER (WHERE NOT control), 0)::bigint, COALESCE(sum(calls) FILTER (WHERE ended), 0)::bigint,
 COALESCE(sum(rows) FILTER (WHERE NOT control), 0)::bigint
FROM (SELECT s.calls, s.rows, lower(s.query) ~ '^(begin|commit|rollback|savepoint|release)' AS control, lower(s.query) ~ '^(commit|rollback)( |$)' AS ended
 FROM public.pg_stat_statements s`+others+`) q`).Scan(&d.Statements, &d.Transactions, &d.Rows)
	if err != nil {
		return d, fmt.Errorf("read statistics of statements: %w", err)
	}
	rows, err := conn.Query(ctx, `SELECT usename, count(*)::int FROM pg_stat_activity WHERE usename LIKE 'certctl\_%' GROUP BY 1`)
	if err != nil {
		return d, fmt.Errorf("count connections: %w", err)
	}
	var role string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&role, &n}, func() error { d.Connections[strings.TrimPrefix(role, "certctl_")] = n; return nil }); err != nil {
		return d, fmt.Errorf("count connections: %w", err)
	}
	return d, nil
}

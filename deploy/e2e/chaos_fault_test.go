package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/tick"
)

// clockOff is how far a wrong clock is off.
const clockOff = 10 * time.Minute

// chaos is a fleet that things happen to.
type chaos struct {
	*fleet

	db    *chaosDatabase
	apart map[string]*process // agents
}

// inject makes something go wrong. What it gives makes it right again.
func (c *chaos) inject(f fault) (heal func()) {
	c.t.Helper()
	switch f.kind {
	case killed:
		p := c.processes[f.target]
		p.kill(c.t)
		return func() { p.start(c.t) }
	case paused:
		p := c.processes[f.target]
		require.NoError(c.t, p.cmd.Process.Signal(syscall.SIGSTOP))
		return func() { require.NoError(c.t, p.cmd.Process.Signal(syscall.SIGCONT)) }
	case fastClock:
		return c.turnClock(f.target, clockOff)
	case slowClock:
		return c.turnClock(f.target, -clockOff)
	case cut:
		c.wires[f.target].sever()
		return c.wires[f.target].mend
	case slow:
		c.wires[f.target].setSlow(true)
		return func() { c.wires[f.target].setSlow(false) }
	case agentKilled:
		return c.killAgent(f.target)
	case crashed:
		c.db.signal(c.t, syscall.SIGQUIT)
		return func() { c.db.again(c.t) }
	case dbKilled:
		c.db.signal(c.t, syscall.SIGKILL)
		return func() { c.db.again(c.t) }
	case crowded:
		return c.db.crowd(c.t)
	case full:
		return c.db.fill(c.t)
	case logFull:
		heal = c.db.fill(c.t)
		c.db.switchLog(c.t)
		return heal
	default:
		require.Fail(c.t, "no such fault", string(f.kind))
		return nil
	}
}

// turnClock starts a replica again with another clock.
func (c *chaos) turnClock(name string, off time.Duration) (back func()) {
	c.t.Helper()
	p := c.processes[name]
	restart := func(off time.Duration) {
		p.kill(c.t)
		p.skew = off
		p.start(c.t)
	}
	restart(off)
	c.wait(c.t, name+" to tell another time", func() bool {
		wrong := time.Until(p.lastSaid()) - off
		return wrong.Abs() < time.Minute
	})
	return func() { restart(0) }
}

// lastSaid is the time of a program's newest line, by its own clock.
func (p *process) lastSaid() (at time.Time) {
	lines := strings.Split(strings.TrimSpace(p.output()), "\n")
	stamp, _, _ := strings.Cut(lines[len(lines)-1], "\t")
	at, _ = time.Parse(time.RFC3339, stamp)
	return at
}

// killAgent waits until an agent has a deployment in its hands, and kills it.
func (c *chaos) killAgent(name string) (heal func()) {
	c.t.Helper()
	p := c.apart[name]
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.database)
	busy := false
	for err == nil && !busy {
		err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM inventory.assignments s JOIN inventory.agents a ON a.id = s.agent_id
 WHERE a.name = $1 AND s.kind = 'DEPLOY' AND s.end_time IS NULL)`, name).Scan(&busy)
	}
	p.kill(c.t)
	if conn != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
	}
	if !busy {
		c.t.Logf("%s was not seen to deploy when it was killed: %v", name, err)
	}
	return func() { p.start(c.t) }
}

// chaosDatabase is the Postgres of a fleet.
type chaosDatabase struct {
	*testpg.Server

	dir  string // its data directory
	disk bool   // the data directory is a file system of its own
}

// Postgres has room for what the installation may take, and for few others.
const (
	chaosConnections = 70
	chaosDisk        = "2g" // the most that the data directory may take while the disk is not full
)

// startChaosDatabase starts a Postgres that has its disk for itself where this process may mount one. What is committed is with the
// kernel, and so outlives the server, though not the machine.
func startChaosDatabase(t *testing.T) *chaosDatabase {
	t.Helper()
	d := &chaosDatabase{Server: testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{
		"synchronous_commit": "on", "max_connections": strconv.Itoa(chaosConnections), "max_wal_size": "64MB", "min_wal_size": "4MB", "wal_recycle": "off"}})}
	d.dir = rows(t, d.URL(), "SHOW data_directory")[0]
	query(t, d.URL(), "CREATE ROLE stranger LOGIN")
	d.Stop(t)
	err := d.mount(t)
	if err != nil {
		t.Logf("SKIPPED: no fault of a full disk, because the data directory of Postgres cannot get a file system of its own: %v", err)
	}
	d.Start(t)
	return d
}

// mount puts the data directory on a file system in memory.
func (d *chaosDatabase) mount(t *testing.T) error {
	t.Helper()
	info, err := os.Stat(d.dir)
	if err != nil {
		return err
	}
	aside := d.dir + ".aside"
	if err := os.Rename(d.dir, aside); err != nil {
		return err
	}
	owner, _ := info.Sys().(*syscall.Stat_t)
	options := fmt.Sprintf("mode=0700,uid=%d,gid=%d,size=%s", owner.Uid, owner.Gid, chaosDisk)
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("certctl-chaos", d.dir, "tmpfs", 0, options); err != nil {
		return errors.Join(err, os.Remove(d.dir), os.Rename(aside, d.dir))
	}
	d.disk = true
	t.Cleanup(func() { // Postgres goes on in it, until its own cleanup
		require.NoError(t, syscall.Unmount(d.dir, syscall.MNT_FORCE|2)) // 2 is MNT_DETACH
	})
	out, err := exec.CommandContext(t.Context(), "cp", "-a", aside+"/.", d.dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return os.RemoveAll(aside)
}

// resize changes the room of the disk.
func (d *chaosDatabase) resize(size string) error {
	return syscall.Mount("certctl-chaos", d.dir, "tmpfs", syscall.MS_REMOUNT, "size="+size)
}

// fill takes all the room that is left. Whoever made room finds Postgres ended, or not, or finds that it ends a moment later (revive).
func (d *chaosDatabase) fill(t *testing.T) (heal func()) {
	t.Helper()
	before := d.complaints(t)
	require.Eventually(t, func() bool {
		var s syscall.Statfs_t
		if err := syscall.Statfs(d.dir, &s); err != nil {
			return false
		}
		return d.resize(strconv.FormatInt(int64(s.Blocks-s.Bfree)*s.Bsize, 10)) == nil // not while it grows
	}, patience, time.Millisecond)
	return func() {
		require.NoError(t, d.resize(chaosDisk))
		t.Logf("the disk was full: Postgres found no room %d times", d.complaints(t)-before)
		d.revive(t)
	}
}

// switchLog has Postgres begin a new file of its log. Without room for one it has to end all connections, and perhaps itself.
func (d *chaosDatabase) switchLog(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.URL())
	if err == nil {
		_, err = conn.Exec(ctx, "SELECT pg_switch_wal()")
		_ = conn.Close(ctx)
	}
	if err != nil {
		t.Logf("a new file of the log: %v", err)
	}
}

// complaints counts how often Postgres found no room.
func (d *chaosDatabase) complaints(t *testing.T) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(filepath.Dir(d.dir), "log"))
	require.NoError(t, err)
	return bytes.Count(log, []byte("No space left on device"))
}

// pid gives the postmaster's process; 0: there is none.
func (d *chaosDatabase) pid() int {
	text, err := os.ReadFile(filepath.Join(d.dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}

// ended tells whether the postmaster has ended by itself.
func (d *chaosDatabase) ended(t *testing.T) bool {
	t.Helper()
	pid := d.pid()
	if pid == 0 {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

// signal ends Postgres: SIGQUIT is the immediate mode.
func (d *chaosDatabase) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if pid := d.pid(); pid != 0 {
		require.NoError(t, syscall.Kill(pid, s))
	}
	require.Eventually(t, func() bool { return d.ended(t) }, patience, interval)
}

// revive starts a Postgres that has ended by itself, as whoever supervises it would.
func (d *chaosDatabase) revive(t *testing.T) {
	t.Helper()
	if d.ended(t) {
		t.Log("Postgres ended by itself")
		d.again(t)
	}
}

// again starts a Postgres that has ended.
func (d *chaosDatabase) again(t *testing.T) {
	t.Helper()
	d.Kill(t)
	d.Start(t)
}

// crowd takes all connections that are left, and those of the installation, which must make new ones.
func (d *chaosDatabase) crowd(t *testing.T) (heal func()) {
	t.Helper()
	config, err := pgx.ParseConfig(d.URL())
	require.NoError(t, err)
	config.User = "stranger"
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var taken []*pgx.Conn
	var taking sync.WaitGroup
	for range 4 {
		taking.Go(func() {
			for ctx.Err() == nil {
				conn, err := pgx.ConnectConfig(ctx, config)
				if err != nil {
					_ = tick.Wait(ctx, time.Millisecond)
					continue
				}
				mu.Lock()
				taken = append(taken, conn)
				mu.Unlock()
			}
		})
	}
	admin, err := pgx.Connect(ctx, d.URL())
	if err == nil {
		_, err = admin.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'certctl\_%'`)
		_ = admin.Close(ctx)
	}
	if err != nil {
		t.Logf("nobody lost a connection: %v", err)
	}
	return func() {
		cancel()
		taking.Wait()
		t.Logf("a stranger held %d of %d connections", len(taken), chaosConnections)
		for _, conn := range taken {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}
}

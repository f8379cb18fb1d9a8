package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// MostPerGroup is the most that ClaimShared takes of one group at a time.
const MostPerGroup = 256

// sharedClaim walks from group to group along the index, so that its cost grows with the number of groups and not with that
// of rows, and takes of each no more than there is room for, in turn: a row's turn comes after those of its group that are before
// it, the ones that are worked on included. The rows of a group are read one by one in the order of their times, and locked each,
// until there are enough. The number in the inner query tells the planner that few rows are wanted, as of a limit that is an
// expression it believes a tenth of all, and then reads and sorts all that are due. A row is locked where it was found: for its id
// the planner might look through an index of what is due, if it knows of few such rows.
func (t *Table) sharedClaim(set string) string {
	if t.cfg.Group == "" {
		return ""
	}
	id, table, group := t.cfg.ID, t.cfg.Table, t.cfg.Group
	due := "d.due_time <= " + now(1) + " AND (d.lease_until IS NULL OR d.lease_until <= " + now(1) + ")" + t.inDueState()
	// The partial index is on what can be due at all. The order is the index's: who knows of few rows would read them all for a minimum.
	next := func(more string) string {
		return `(SELECT ` + group + ` FROM ` + table + ` WHERE due_time IS NOT NULL` + t.inDueState() + more + ` ORDER BY ` + group + ` LIMIT 1)`
	}
	return `WITH RECURSIVE groups (name) AS (
	SELECT ` + next("") + `
	UNION ALL
	SELECT ` + next(" AND "+group+" > g.name") + ` FROM groups g WHERE g.name IS NOT NULL
), due AS MATERIALIZED (
	SELECT c.id FROM groups g
	LEFT JOIN unnest($5::text[], $6::integer[]) AS room (name, rows) ON room.name = g.name
	CROSS JOIN LATERAL (
		SELECT k.id, k.due_time FROM (
			SELECT d.ctid AS place, d.` + id + ` AS id, d.due_time FROM ` + table + ` d WHERE d.` + group + ` = g.name AND ` + due + `
			ORDER BY d.due_time, d.` + id + ` LIMIT ` + strconv.Itoa(MostPerGroup) + `) k
		CROSS JOIN LATERAL (SELECT FROM ` + table + ` d WHERE d.ctid = k.place AND ` + due + ` FOR UPDATE SKIP LOCKED) l
		LIMIT GREATEST(LEAST(COALESCE(room.rows, $4), $2), 0)) c
	ORDER BY $4 - COALESCE(room.rows, $4) + row_number() OVER (PARTITION BY g.name ORDER BY c.due_time, c.id), c.due_time, c.id LIMIT $2
)
UPDATE ` + table + ` t SET ` + set + ` FROM due WHERE t.` + id + ` = due.id
RETURNING t.` + id + `::text, t.lease_id, t.attempts, t.due_time, t.` + group + `::text`
}

// Shared says what ClaimShared may take.
type Shared struct {
	Limit    int
	LeaseFor time.Duration
	PerGroup int            // the most of a group that Room does not name
	Room     map[string]int // the most of one group; what it lacks of PerGroup is being worked on
}

// GroupLease is a lease and the group of its row.
type GroupLease struct {
	Lease

	Group string
}

// ClaimShared takes rows that are due, of each group no more than there is room for. When there is less room than work, the groups
// take turns, and who has the fewest rows under way is next: the many due rows of one group are never in front of another's.
func (t *Table) ClaimShared(ctx context.Context, db DB, s Shared) ([]GroupLease, error) {
	if t.shared == "" {
		return nil, fmt.Errorf("claim from %s: the table has no groups", t.cfg.Table)
	}
	if s.Limit <= 0 {
		return nil, nil
	}
	names, room := make([]string, 0, len(s.Room)), make([]int, 0, len(s.Room))
	for name, rows := range s.Room {
		names, room = append(names, name), append(room, rows)
	}
	rows, err := db.Query(ctx, t.shared, t.clock(), s.Limit, s.LeaseFor, s.PerGroup, names, room)
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", t.cfg.Table, err)
	}
	leases, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (GroupLease, error) {
		var l GroupLease
		err := row.Scan(&l.ID, &l.LeaseID, &l.Attempts, &l.DueTime, &l.Group)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", t.cfg.Table, err)
	}
	return leases, nil
}

// SharerDeps are what a sharer works with.
type SharerDeps struct {
	Table  *Table // with a Group
	DB     DB
	Handle Handler
	// PerGroup is how many rows of one group are worked on at a time.
	PerGroup int
}

// Sharer shares the slots of a runner among the groups of a table, so that a group with much work leaves the next free slot to one with
// less, and a group whose work hangs keeps only its own share. Its Claim and Handle are those of the RunnerDeps; OnRoom gets the runner's Kick.
type Sharer struct {
	deps SharerDeps

	mu    sync.Mutex
	busy  map[string]int
	taken map[uuid.UUID]string
	short map[string]bool // groups of which the last claim took all that it might: there may be more
	room  func()
}

// NewSharer makes a sharer.
func NewSharer(deps SharerDeps) (*Sharer, error) {
	if deps.Table == nil || deps.Table.shared == "" || deps.DB == nil || deps.Handle == nil || deps.PerGroup <= 0 {
		return nil, errors.New("sharer: a table with groups, a database, a handler and a share are needed")
	}
	return &Sharer{deps: deps, busy: map[string]int{}, taken: map[uuid.UUID]string{}, short: map[string]bool{}, room: func() {}}, nil
}

// OnRoom sets what is told when a group has a free slot again. It is set before anything is claimed.
func (s *Sharer) OnRoom(f func()) { s.room = f }

// Claim takes rows that are due; it is for one caller at a time. Each lease has to be given to Handle.
func (s *Sharer) Claim(ctx context.Context, limit int, leaseFor time.Duration) ([]Lease, error) {
	s.mu.Lock()
	busy := maps.Clone(s.busy)
	s.mu.Unlock()
	room := make(map[string]int, len(busy))
	for group, n := range busy {
		room[group] = s.deps.PerGroup - n
	}
	claimed, err := s.deps.Table.ClaimShared(ctx, s.deps.DB, Shared{Limit: limit, LeaseFor: leaseFor, PerGroup: s.deps.PerGroup, Room: room})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	leases := make([]Lease, 0, len(claimed))
	took := map[string]int{}
	for _, l := range claimed {
		s.busy[l.Group]++
		busy[l.Group]++
		took[l.Group]++
		s.taken[l.LeaseID] = l.Group
		leases = append(leases, l.Lease)
	}
	clear(s.short)
	for group, n := range busy {
		s.short[group] = n >= s.deps.PerGroup || took[group] >= MostPerGroup
	}
	return leases, nil
}

// Handle works on a claimed row.
func (s *Sharer) Handle(ctx context.Context, l Lease) error {
	s.mu.Lock()
	group, ok := s.taken[l.LeaseID]
	delete(s.taken, l.LeaseID)
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("work on row %s: its lease was not claimed here", l.ID)
	}
	defer s.release(group)
	return s.deps.Handle(ctx, l)
}

func (s *Sharer) release(group string) {
	s.mu.Lock()
	short := s.short[group]
	s.busy[group]--
	if s.busy[group] == 0 {
		delete(s.busy, group)
	}
	s.mu.Unlock()
	if short {
		s.room()
	}
}

package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"
)

// kind is what goes wrong.
type kind string

const (
	killed      kind = "kill -9"
	paused      kind = "SIGSTOP"
	crashed     kind = "Postgres ends at once"
	dbKilled    kind = "Postgres is killed"
	crowded     kind = "Postgres is out of connections"
	full        kind = "disk of Postgres is full"
	logFull     kind = "disk of Postgres is full, and its log needs room"
	cut         kind = "network is cut"
	slow        kind = "network is slow"
	fastClock   kind = "clock is 10 minutes ahead"
	slowClock   kind = "clock is 10 minutes behind"
	agentKilled kind = "agent is killed while it deploys"
)

// fault is something that goes wrong for a while. Which one it is follows from the seed alone.
type fault struct {
	kind   kind
	target string // a replica, a wire or an agent; empty for the database
	hold   time.Duration
}

func (f fault) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s", f.kind, f.target)) + " for " + f.hold.Round(time.Millisecond).String()
}

// victims is what can be hit.
type victims struct {
	replicas, wires, agents []string
	disk, clock             bool           // whether these can be hit here
	only                    *regexp.Regexp // kinds; nil: all
}

// script makes the faults of a run: each kind once; then all processes killed, one after the other; then at random, one or two at a time.
type script struct {
	choices *rand.Rand
	victims victims
	longest time.Duration // that anything is held
	played  int
	first   [][]fault
}

// longestShort and longestLong are how long anything is held in a run of some minutes, and in one that takes its time.
const (
	longestShort = 4 * time.Second
	longestLong  = 30 * time.Second
	shortRun     = 5 * time.Minute
)

func newScript(seed uint64, length time.Duration, v victims) *script {
	s := &script{choices: rand.New(rand.NewPCG(seed, 1)), victims: v, longest: longestLong}
	if length < shortRun {
		s.longest = longestShort
	}
	for _, k := range s.kinds() {
		s.first = append(s.first, []fault{s.fault(k)})
	}
	s.choices.Shuffle(len(s.first), func(i, j int) { s.first[i], s.first[j] = s.first[j], s.first[i] })
	for _, r := range v.replicas {
		if !slices.Contains(s.kinds(), killed) {
			break
		}
		s.first = append(s.first, []fault{{kind: killed, target: r, hold: s.between(200*time.Millisecond, time.Second)}})
	}
	return s
}

// kinds that can be had here.
func (s *script) kinds() []kind {
	all := []kind{killed, paused, crashed, dbKilled, crowded, cut, slow, agentKilled}
	if s.victims.disk {
		all = append(all, full, logFull)
	}
	if s.victims.clock {
		all = append(all, fastClock, slowClock)
	}
	return slices.DeleteFunc(all, func(k kind) bool { return s.victims.only != nil && !s.victims.only.MatchString(string(k)) })
}

// next gives the faults that come next, which are there at the same time.
func (s *script) next() (faults []fault) {
	s.played++
	if s.played <= len(s.first) {
		return s.first[s.played-1]
	}
	kinds := s.kinds()
	for range 1 + s.choices.IntN(2) {
		f := s.fault(kinds[s.choices.IntN(len(kinds))])
		// One thing fails in one way at a time: what is dead cannot be paused.
		if !slices.ContainsFunc(faults, func(g fault) bool { return f.target == g.target }) {
			faults = append(faults, f)
		}
	}
	return faults
}

func (s *script) fault(k kind) fault {
	f := fault{kind: k, hold: s.between(s.longest/4, s.longest)}
	switch k {
	case killed:
		f.target, f.hold = s.one(s.victims.replicas), s.between(200*time.Millisecond, s.longest/2)
	case paused, fastClock, slowClock:
		f.target = s.one(s.victims.replicas)
	case cut, slow:
		f.target = s.one(s.victims.wires)
	case agentKilled:
		f.target, f.hold = s.one(s.victims.agents), s.between(100*time.Millisecond, s.longest/4)
	case crashed, dbKilled:
		f.hold = s.between(100*time.Millisecond, s.longest/4)
	case crowded, full, logFull: // the database, for as long as anything
	}
	return f
}

func (s *script) one(of []string) string { return of[s.choices.IntN(len(of))] }

func (s *script) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.choices.Int64N(int64(most-least)))
}

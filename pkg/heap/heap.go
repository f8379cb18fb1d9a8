// Package heap sets how often garbage is collected. Go lets a heap grow by a share of what is in use: a process that uses 5 MiB collects each
// time it has allocated another 5, all the time under load, and one with 300 MiB of connections lets as much garbage lie. Here the room is
// about the same for both. And when many collections, as of thousands of agents that connect at once, have come to an end, what is free goes
// back to the system, which Go otherwise keeps for a next time.
package heap

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// Room is what may be allocated between two collections, in bytes, and the bounds of what that makes of GOGC, in percent.
const (
	Room  = 32 << 20
	least = 25
	most  = 800
)

// A busy time has at least so many collections, and is over when there was none for so long. Of idle processes Go has one in two minutes.
const (
	busy  = 5
	quiet = 20 * time.Second
)

// Keep sets GOGC after each collection so that the heap may grow by Room until the next, and gives memory back after a busy time. Who has
// set GOGC or GOMEMLIMIT keeps it, and what Go makes of it.
func Keep() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		over := whenQuiet(busy, quiet, giveBack)
		afterEach(func() {
			debug.SetGCPercent(percent(used()))
			over()
		})
	}
}

// whenQuiet gives a function that has do called when it was called so many times, never so long after the last, and then not for so long.
func whenQuiet(busy int32, quiet time.Duration, do func()) (called func()) {
	var calls atomic.Int32
	end := time.AfterFunc(math.MaxInt64, func() { //nolint:forbidigo // it is no loop: each call puts it off
		if calls.Swap(0) >= busy {
			do()
		}
	})
	return func() {
		calls.Add(1)
		end.Reset(quiet)
	}
}

// giveBack collects twice, since pools keep what they have for one collection more.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}

// percent is the GOGC that gives Room to a process that uses so many bytes.
func percent(used uint64) int {
	return int(min(max(100*Room/max(used, 1), least), most))
}

// used is what GOGC is a share of: objects in use, stacks and globals (https://go.dev/doc/gc-guide#GOGC), in bytes.
func used() (sum uint64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			sum += s.Value.Uint64()
		}
	}
	return sum
}

// marker is an object that nobody holds: the next collection finds it.
type marker struct{ _ *marker }

// afterEach calls do after each collection.
func afterEach(do func()) {
	runtime.AddCleanup(&marker{}, func(do func()) {
		do()
		afterEach(do)
	}, do)
}

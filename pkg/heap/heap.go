// Package heap sets how often garbage is collected. Go lets a heap grow by a share of what is in use: a process that uses 5 MiB collects each
// time it has allocated another 5, all the time under load, and one with 300 MiB of connections lets as much garbage lie. Here the room is
// about the same for both.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Room is what may be allocated between two collections, in bytes, and the bounds of what that makes of GOGC, in percent.
const (
	Room  = 32 << 20
	least = 25
	most  = 800
)

// Keep sets GOGC after each collection so that the heap may grow by Room until the next. Who has set GOGC or GOMEMLIMIT keeps it.
func Keep() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		afterEach(func() { debug.SetGCPercent(percent(used())) })
	}
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

// Package meter runs a load and reads beside it what it has cost.
package meter

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/deploy/bench/internal/gauge"
	"github.com/certctl/certctl/pkg/load"
)

// Reading is what a load was, and what it has cost.
type Reading struct {
	// Rate is what arrived in a second, 0 for a closed loop; Throughput what was answered.
	Rate       float64      `json:"rate_per_second,omitempty"`
	Workers    int          `json:"connections"`
	Seconds    float64      `json:"seconds"`
	Requests   int          `json:"requests"`
	Failed     int          `json:"failed"`
	Error      string       `json:"error,omitempty"`
	Throughput float64      `json:"throughput_per_second"`
	Latency    load.Latency `json:"latency_ms"`
	// CPU is what each process has used per request, in microseconds; "load" is this program.
	CPU map[string]float64 `json:"cpu_us_per_request"`
	// Statements, Transactions and Rows are per request, over all services.
	Statements   float64 `json:"statements_per_request"`
	Transactions float64 `json:"transactions_per_request"`
	Rows         float64 `json:"rows_per_request"`
	// Memory is that of each process at the end, in bytes, without pages that others share.
	Memory      map[string]int64 `json:"memory_bytes"`
	Connections map[string]int   `json:"database_connections"`
	Bytes       float64          `json:"bytes_per_answer,omitempty"`
}

// Busy are the cores that were used, all processes together.
func (r Reading) Busy() (cores float64) {
	for _, us := range r.CPU {
		cores += us * r.Throughput / 1e6
	}
	return cores
}

// Meter reads processes and a database.
type Meter struct {
	Processes func() gauge.Processes
	Conn      *pgx.Conn // of the superuser
}

// Run runs a load.
func (m Meter) Run(ctx context.Context, p load.Plan, do func(ctx context.Context, worker, n int) error) (Reading, error) {
	return m.Around(ctx, func() load.Result { return load.Run(ctx, p, do) }, p)
}

// Around reads beside any work that answers how it went; its plan is for the record.
func (m Meter) Around(ctx context.Context, work func() load.Result, p load.Plan) (Reading, error) {
	if err := gauge.Reset(ctx, m.Conn); err != nil {
		return Reading{}, err
	}
	before, err := m.Processes().CPU()
	if err != nil {
		return Reading{}, err
	}
	result := work()
	after, err := m.Processes().CPU()
	if err != nil {
		return Reading{}, err
	}
	memory, err := m.Processes().Memory()
	if err != nil {
		return Reading{}, err
	}
	db, err := gauge.ReadDatabase(ctx, m.Conn)
	if err != nil {
		return Reading{}, err
	}
	r := Reading{
		Rate: p.Rate, Workers: p.Workers, Seconds: result.Elapsed.Seconds(), Requests: result.Planned, Failed: result.Failed,
		Throughput: result.Throughput(), Latency: result.Latency, CPU: map[string]float64{}, Memory: memory, Connections: db.Connections,
	}
	if result.Err != nil {
		r.Error = result.Err.Error()
	}
	n := float64(max(result.Planned, 1))
	for name, used := range after.Since(before) {
		r.CPU[name] = float64(used) / float64(time.Microsecond) / n
	}
	r.Statements, r.Transactions, r.Rows = float64(db.Statements)/n, float64(db.Transactions)/n, float64(db.Rows)/n
	if result.Planned == 0 {
		return r, errors.New("the load was empty")
	}
	return r, nil
}

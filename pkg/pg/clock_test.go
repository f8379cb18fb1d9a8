package pg

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestTheDatabasesClockCountsWhereThisMachinesIsWrong(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.WarnLevel)
	db := &DB{log: zap.New(core)}
	asked := time.Now()
	answered := asked.Add(time.Second)
	for _, c := range []struct {
		at       time.Time
		off      time.Duration
		warnings int
	}{
		{asked.Add(500 * time.Millisecond), 0, 0},
		{answered.Add(clockTolerance), 0, 0},
		{asked.Add(-clockTolerance), 0, 0},
		{answered.Add(10 * time.Minute), 10 * time.Minute, 1},
		{answered.Add(10*time.Minute + time.Second), 10*time.Minute + time.Second, 1}, // said once
		{asked.Add(-10 * time.Minute), -10 * time.Minute, 2},
		{asked, 0, 3},
	} {
		db.noteClock(asked, answered, c.at)
		require.WithinDuration(t, time.Now().Add(c.off), db.Now(), time.Second)
		require.Equal(t, c.warnings, logs.Len())
	}
}

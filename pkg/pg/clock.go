package pg

import (
	"time"

	"go.uber.org/zap"
)

// clockTolerance is how far the clock of a machine may be from the database's, and still be its own.
const clockTolerance = 2 * time.Second

// Now is the time that all replicas share: this machine's, or the database's where the two are more than clockTolerance apart. What a replica
// with a wrong clock writes down to be done at once would else be done when that time has come. With a pool of a fixed size it is this
// machine's.
func (db *DB) Now() time.Time { return time.Now().Add(time.Duration(db.clockOff.Load())) }

// noteClock compares the clocks: at is what the database said between asked and answered.
func (db *DB) noteClock(asked, answered, at time.Time) {
	off := max(at.Sub(answered), 0) + min(at.Sub(asked), 0)
	if off.Abs() <= clockTolerance {
		off = 0
	}
	if old := time.Duration(db.clockOff.Swap(int64(off))); (old - off).Abs() > clockTolerance {
		db.log.Warn("the clock of this machine and that of the database differ; the database's is taken where replicas have to agree",
			zap.Duration("database_ahead", off))
	}
}

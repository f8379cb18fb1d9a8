package store

import "github.com/certctl/certctl/services/asyncpoller/internal/core"

// ClaimSQL gives the statement of a claim, for EXPLAIN.
func (s *Store) ClaimSQL(c core.Claim) (string, []any) { return s.claim, s.claimArgs(c) }

// The statements that are run now and then, for EXPLAIN.
const (
	StuckSQL     = stuck
	CensusSQL    = census
	PruneSQL     = prune
	HistoriesSQL = histories
)

// PruneArgs are those of PruneSQL.
func (s *Store) PruneArgs() []any { return []any{s.clock(), retention, pruneChunk} }

// StuckArgs are those of StuckSQL.
func (s *Store) StuckArgs(held ...string) []any { return []any{s.clock(), stuckAfter, held} }

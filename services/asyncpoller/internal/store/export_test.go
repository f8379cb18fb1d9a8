package store

import "github.com/certctl/certctl/services/asyncpoller/internal/core"

// ClaimSQL gives the statement of a claim, for EXPLAIN.
func (s *Store) ClaimSQL(c core.Claim) (string, []any) { return claim, s.claimArgs(c) }

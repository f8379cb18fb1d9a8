package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Profile bounds what may be issued.
type Profile struct {
	ID                   string
	Name                 string
	Description          string
	AllowedSANPatterns   []string
	AllowWildcards       bool
	AllowedKeyAlgorithms []string
	ExtendedKeyUsages    []string
	MaxValidity          time.Duration
	RequiresApproval     bool
	ApprovalTimeout      time.Duration
	CreateTime           time.Time
	UpdateTime           time.Time
	Revision             int32
}

const profileColumns = `p.id, p.name, p.description, p.allowed_san_patterns, p.allow_wildcards, p.allowed_key_algorithms,
 p.extended_key_usages, p.max_validity_seconds, p.requires_approval, p.approval_timeout_seconds, p.create_time, p.update_time, p.revision`

func scanProfile(row pgx.CollectableRow) (Profile, error) {
	var p Profile
	var validity, approval int64
	err := row.Scan(&p.ID, &p.Name, &p.Description, &p.AllowedSANPatterns, &p.AllowWildcards, &p.AllowedKeyAlgorithms,
		&p.ExtendedKeyUsages, &validity, &p.RequiresApproval, &approval, &p.CreateTime, &p.UpdateTime, &p.Revision)
	p.MaxValidity, p.ApprovalTimeout = time.Duration(validity)*time.Second, time.Duration(approval)*time.Second
	return p, err
}

// InsertProfile stores a new profile; ErrExists when the id is taken.
func InsertProfile(ctx context.Context, q Querier, p Profile) error {
	_, err := q.Exec(ctx, `INSERT INTO profiles (id, name, description, allowed_san_patterns, allow_wildcards,
 allowed_key_algorithms, extended_key_usages, max_validity_seconds, requires_approval, approval_timeout_seconds)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, p.ID, p.Name, p.Description, list(p.AllowedSANPatterns), p.AllowWildcards,
		p.AllowedKeyAlgorithms, p.ExtendedKeyUsages, seconds(p.MaxValidity), p.RequiresApproval, seconds(p.ApprovalTimeout))
	if isUniqueViolation(err) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("store profile: %w", err)
	}
	return nil
}

// UpdateProfile writes what an update may change and raises the revision. The row was locked before.
func UpdateProfile(ctx context.Context, q Querier, p Profile) error {
	_, err := changed(ctx, q, "change profile", `UPDATE profiles SET name = $2, description = $3, allowed_san_patterns = $4,
 allow_wildcards = $5, allowed_key_algorithms = $6, extended_key_usages = $7, max_validity_seconds = $8, requires_approval = $9,
 approval_timeout_seconds = $10, update_time = now(), revision = revision + 1 WHERE id = $1`,
		p.ID, p.Name, p.Description, list(p.AllowedSANPatterns), p.AllowWildcards, p.AllowedKeyAlgorithms, p.ExtendedKeyUsages,
		seconds(p.MaxValidity), p.RequiresApproval, seconds(p.ApprovalTimeout))
	return err
}

// DeleteProfile removes a profile. Orders keep what they took from it.
func DeleteProfile(ctx context.Context, q Querier, id string) error {
	_, err := changed(ctx, q, "delete profile", `DELETE FROM profiles WHERE id = $1`, id)
	return err
}

// CountOpenOrdersOfProfile counts the orders of a profile that are not final; few orders are open at any time.
func CountOpenOrdersOfProfile(ctx context.Context, q Querier, id string) (int, error) {
	var n int
	err := q.QueryRow(ctx, `SELECT count(*) FROM orders WHERE due_time IS NOT NULL AND profile_id = $1`, id).Scan(&n)
	return one("count open orders", n, err)
}

// GetProfile reads one.
func GetProfile(ctx context.Context, q Querier, id string) (Profile, error) {
	return oneProfile(ctx, q, `SELECT `+profileColumns+` FROM profiles p WHERE p.id = $1`, id)
}

// LockProfile reads one for a change in the same transaction.
func LockProfile(ctx context.Context, q Querier, id string) (Profile, error) {
	return oneProfile(ctx, q, `SELECT `+profileColumns+` FROM profiles p WHERE p.id = $1 FOR UPDATE`, id)
}

func oneProfile(ctx context.Context, q Querier, sql, id string) (Profile, error) {
	rows, err := q.Query(ctx, sql, id)
	if err != nil {
		return Profile{}, fmt.Errorf("read profile: %w", err)
	}
	p, err := pgx.CollectExactlyOneRow(rows, scanProfile)
	return one("read profile", p, err)
}

// GetProfiles reads those that exist.
func GetProfiles(ctx context.Context, q Querier, ids []string) ([]Profile, error) {
	return collect(ctx, q, "read profiles", scanProfile, `SELECT `+profileColumns+` FROM profiles p WHERE p.id = ANY($1) ORDER BY p.id`, ids)
}

// ListProfiles reads one page more one row.
func ListProfiles(ctx context.Context, q Querier, p Page) ([]Profile, error) {
	sql, args, err := newWhere().page(`SELECT `+profileColumns+` FROM profiles p`, p)
	if err != nil {
		return nil, err
	}
	return collect(ctx, q, "list profiles", scanProfile, sql, args...)
}

// CountProfiles counts all.
func CountProfiles(ctx context.Context, q Querier) (int32, error) {
	return newWhere().count(ctx, q, "profiles p")
}

// LongestValidity is the longest lifetime that any profile allows; 0 without profiles.
func LongestValidity(ctx context.Context, q Querier) (time.Duration, error) {
	var n int64
	err := q.QueryRow(ctx, `SELECT coalesce(max(max_validity_seconds), 0) FROM profiles`).Scan(&n)
	n, err = one("read longest validity", n, err)
	return time.Duration(n) * time.Second, err
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

package seed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// check makes sure that certctl has been started once: what its first start makes is not made here.
func (m *model) check(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM issuance.issuers WHERE id = $1) AND EXISTS (SELECT FROM issuance.profiles WHERE id = $2)
 AND EXISTS (SELECT FROM renewalscheduler.policies WHERE id = $3)`, issuers[localIssuer].id, profiles[0].id, policies[0].id).Scan(&there)
	if err != nil {
		return fmt.Errorf("fill: look for what the first start of certctl makes: %w", err)
	}
	if !there {
		return fmt.Errorf("fill: %s, %s and %s are needed: start certctl once on the database, and stop it", issuers[localIssuer].id, profiles[0].id, policies[0].id)
	}
	for i := range policies {
		m.policyRevisions[i] = 1
	}
	err = conn.QueryRow(ctx, `SELECT revision FROM renewalscheduler.policies WHERE id = $1`, policies[0].id).Scan(&m.policyRevisions[0])
	if err != nil {
		return fmt.Errorf("fill: read policy: %w", err)
	}
	return nil
}

// settings makes issuers, profiles and policies beside those of a first start. Those of an earlier fill stay.
func (m *model) settings(ctx context.Context, conn *pgx.Conn) error {
	var failed error
	exec := func(sql string, args ...any) {
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			failed = errors.Join(failed, fmt.Errorf("fill: make settings: %w", err))
		}
	}
	for _, i := range issuers[1:] {
		exec(`INSERT INTO issuance.issuers (id, name, type, config, config_hash, enabled) VALUES ($1, $2, $3, '{}', $1, false) ON CONFLICT DO NOTHING`,
			i.id, i.name, i.kind)
	}
	for _, p := range profiles[1:] {
		exec(`INSERT INTO issuance.profiles (id, name, allowed_san_patterns, allow_wildcards, allowed_key_algorithms, extended_key_usages,
 max_validity_seconds, requires_approval, approval_timeout_seconds) SELECT $1, $2, allowed_san_patterns, true, allowed_key_algorithms,
 extended_key_usages, $3, false, approval_timeout_seconds FROM issuance.profiles WHERE id = $4 ON CONFLICT DO NOTHING`,
			p.id, p.name, int64(p.lifetime/time.Second), profiles[0].id)
	}
	for _, p := range policies[1:] {
		exec(`INSERT INTO renewalscheduler.policies (id, name, renew_before_seconds, automatic, max_attempts, alert_days, freeze_windows,
 create_time, update_time, revision) VALUES ($1, $2, nullif($3::bigint, 0), $4, 5, '{30,14,7,1}', '[]', now(), now(), 1) ON CONFLICT DO NOTHING`,
			p.id, p.name, int64(p.before/time.Second), p.automatic)
	}
	return failed
}

package pg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certctl/certctl/pkg/tick"
)

const (
	roleStatementTimeout = "30s"
	roleLockTimeout      = "5s"
	roleIdleTxTimeout    = "60s"
	// rolePageCost is what reading a page at any place costs beside one after the other, for disks without heads. With the 4 that
	// Postgres has from the time of others it reads and sorts thousands of rows that an index has in their order.
	rolePageCost = "1.1"

	// roleAttempts bounds how often a statement on a catalog row is tried when others change the same row: roles belong
	// to the whole server, and the advisory lock to one database.
	roleAttempts = 30
)

// roleSettings are what every session of a service starts with.
func roleSettings(schema string) map[string]string {
	return map[string]string{
		"search_path":                         schema,
		"statement_timeout":                   roleStatementTimeout,
		"lock_timeout":                        roleLockTimeout,
		"idle_in_transaction_session_timeout": roleIdleTxTimeout,
		"random_page_cost":                    rolePageCost,
		"jit":                                 "off", // compiling a statement takes longer than any of them runs
	}
}

// giveRights makes the login role of the schema and gives it rights there and nowhere else.
func (m *migrator) giveRights(ctx context.Context, conn *pgx.Conn) error {
	role := RoleName(m.schema.Name)
	if err := retryCatalog(ctx, func() error { return createRole(ctx, conn, role) }); err != nil {
		return err
	}
	alter, err := m.alterRole(role)
	if err != nil {
		return err
	}
	for _, statement := range append(alter, lockDownPublic...) {
		err := retryCatalog(ctx, func() error {
			_, err := conn.Exec(ctx, statement)
			return err
		})
		if err != nil {
			return fmt.Errorf("set up role %s: %w", role, err)
		}
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return m.grant(ctx, tx, role) })
	if err != nil {
		return fmt.Errorf("grant rights to %s: %w", role, err)
	}
	return nil
}

// lockDownPublic takes away what every role has by default (until version 14, to create tables in schema public).
// It warns instead of failing where the base user does not own the schema.
var lockDownPublic = []string{
	`DO $$ BEGIN
		IF EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'public' AND pg_has_role(nspowner, 'USAGE')
		           AND EXISTS (SELECT 1 FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) WHERE grantee = 0)) THEN
			REVOKE ALL ON SCHEMA public FROM PUBLIC;
		END IF;
	END $$`,
}

// createRole makes the role if it is missing, and refuses one that rights cannot bind.
func createRole(ctx context.Context, conn *pgx.Conn, role string) error {
	var super bool
	err := conn.QueryRow(ctx, "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1", role).Scan(&super)
	switch {
	case err == nil && super:
		return fmt.Errorf("role %s is a superuser or bypasses row security: take that away (ALTER ROLE %s NOSUPERUSER NOBYPASSRLS)", role, role)
	case err == nil:
		return nil
	case !errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("look for role %s: %w", role, err)
	}
	_, err = conn.Exec(ctx, "CREATE ROLE "+ident(role)+" LOGIN")
	if hasCode(err, codeDuplicateObject, codeUniqueViolation) {
		return nil // somebody else made it between the two statements
	}
	if err != nil {
		return fmt.Errorf("create role %s: %w", role, err)
	}
	return nil
}

// alterRole gives the statements that bring an existing role to its password, limit and settings.
func (m *migrator) alterRole(role string) ([]string, error) {
	limit, ok := m.cfg.Quotas[m.schema.Name]
	if !ok {
		limit = -1
	}
	statement := fmt.Sprintf("ALTER ROLE %s LOGIN CONNECTION LIMIT %d", ident(role), limit)
	passwords, err := rolePasswords(m.base, m.cfg.RoleSecret, m.schema.Name)
	if err != nil {
		return nil, err
	}
	if password := passwords[0]; !password.IsZero() {
		verifier, err := scramVerifier(password)
		if err != nil {
			return nil, err
		}
		statement += " PASSWORD '" + verifier + "'"
	}
	statements := []string{statement}
	settings := roleSettings(m.schema.Name)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s SET %s = '%s'", ident(role), name, settings[name]))
	}
	return statements, nil
}

// grant gives the rights in one transaction, so that an append-only table is never open in between.
func (m *migrator) grant(ctx context.Context, tx pgx.Tx, role string) error {
	schema, to := ident(m.schema.Name), ident(role)
	future := "SELECT, INSERT, UPDATE, DELETE"
	if len(m.schema.AppendOnly) > 0 {
		// A table that a later migration adds may be append-only; it is opened below, once that is known.
		future = "SELECT, INSERT"
	}
	statements := []string{
		"REVOKE ALL ON SCHEMA " + schema + " FROM PUBLIC",
		"GRANT USAGE ON SCHEMA " + schema + " TO " + to,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA " + schema + " TO " + to,
		"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA " + schema + " TO " + to,
		"ALTER DEFAULT PRIVILEGES IN SCHEMA " + schema + " REVOKE UPDATE, DELETE ON TABLES FROM " + to,
		"ALTER DEFAULT PRIVILEGES IN SCHEMA " + schema + " GRANT " + future + " ON TABLES TO " + to,
		"ALTER DEFAULT PRIVILEGES IN SCHEMA " + schema + " GRANT USAGE, SELECT ON SEQUENCES TO " + to,
		"REVOKE ALL ON " + ident(m.schema.Name, versionTable) + " FROM " + to,
		"GRANT SELECT ON " + ident(m.schema.Name, versionTable) + " TO " + to,
	}
	for _, table := range m.schema.AppendOnly {
		tables, err := withChildren(ctx, tx, m.schema.Name, table)
		if err != nil {
			return err
		}
		for _, t := range tables {
			statements = append(statements, "REVOKE ALL ON "+t+" FROM "+to, "GRANT SELECT, INSERT ON "+t+" TO "+to)
		}
	}
	for _, statement := range statements {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// withChildren names a table and all its partitions and children, quoted and with their schemas.
func withChildren(ctx context.Context, tx pgx.Tx, schema, table string) ([]string, error) {
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE tree(oid) AS (
			SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
			UNION
			SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
		SELECT format('%I.%I', n.nspname, c.relname)
		FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace`, schema, table)
	if err != nil {
		return nil, fmt.Errorf("look for append-only table %s: %w", table, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for append-only table %s: %w", table, err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("append-only table %s.%s does not exist", schema, table)
	}
	return names, nil
}

// retryCatalog runs f again while others change the same catalog row.
func retryCatalog(ctx context.Context, f func() error) error {
	pause := newBackoff(10*time.Millisecond, 500*time.Millisecond)
	for attempt := 1; ; attempt++ {
		err := f()
		if attempt == roleAttempts || !hasCode(err, codeInternalError, codeUniqueViolation, codeDuplicateObject, codeDuplicateSchema) {
			return err
		}
		if tick.Wait(ctx, pause.NextBackOff()) != nil {
			return err
		}
	}
}

func hasCode(err error, codes ...string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, e.Code)
}

// adviseRights explains a base user that lacks rights to migrate.
func adviseRights(err error) error {
	if !hasCode(err, codeInsufficientRights) {
		return err
	}
	return &Problem{Advice: "the user of CERTCTL_DATABASE_URL lacks a right (SQLSTATE 42501): it needs CREATE on the database " +
		"(GRANT CREATE ON DATABASE … TO …) and, to make the roles certctl_…, CREATEROLE (ALTER ROLE … CREATEROLE); where the server's owner grants " +
		"no CREATEROLE, set CERTCTL_DATABASE_ROLES=shared", Cause: err}
}

package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// table is one table with its new content.
type table struct {
	// schema is the service's, name the table's.
	schema, name string
	// columns are what fill writes; the others have their defaults.
	columns string
	// fill writes the rows; nil leaves the table empty.
	fill func(r *rows)
}

func (t table) String() string { return t.schema + "." + t.name }

// object is an index or a constraint, as the statement that makes it.
type object struct{ name, definition string }

// load replaces the content of a table in one transaction: what it has of indexes is dropped and built again over the rows that are
// there by then, which is many times faster than keeping them up. Because the table is emptied in the same transaction, its rows are
// written frozen, and under wal_level=minimal nothing goes to the WAL.
func (t table) load(ctx context.Context, conn *pgx.Conn) (count int64, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		constraints, indexes, err := t.keys(ctx, tx)
		if err != nil {
			return err
		}
		if err := t.empty(ctx, tx, constraints, indexes); err != nil {
			return err
		}
		if count, err = t.copy(ctx, conn, "WITH (FORMAT binary, FREEZE)"); err != nil {
			return err
		}
		return t.index(ctx, tx, constraints, indexes)
	})
	if err != nil {
		return 0, fmt.Errorf("fill %s: %w", t, err)
	}
	return count, nil
}

// keys reads what keys and indexes the table has.
func (t table) keys(ctx context.Context, tx pgx.Tx) (constraints, indexes []object, err error) {
	constraints, err = objects(ctx, tx, `SELECT quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
 WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u', 'x') ORDER BY contype, conname`, t.String())
	if err != nil {
		return nil, nil, err
	}
	indexes, err = objects(ctx, tx, `SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i
 WHERE indrelid = $1::text::regclass AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid) ORDER BY indexrelid`, t.String())
	return constraints, indexes, err
}

func objects(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]object, error) {
	found, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, func(row pgx.CollectableRow) (o object, err error) {
		err = row.Scan(&o.name, &o.definition)
		return o, err
	})
}

func (t table) empty(ctx context.Context, tx pgx.Tx, constraints, indexes []object) error {
	for _, o := range constraints {
		if _, err := tx.Exec(ctx, "ALTER TABLE "+t.String()+" DROP CONSTRAINT "+o.name); err != nil {
			return err
		}
	}
	for _, o := range indexes {
		if _, err := tx.Exec(ctx, "DROP INDEX "+o.name); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "TRUNCATE "+t.String())
	return err
}

// copy streams the rows while they are made.
func (t table) copy(ctx context.Context, conn *pgx.Conn, options string) (int64, error) {
	if t.fill == nil {
		return 0, nil
	}
	reader, writer := io.Pipe()
	r := newRows(writer, strings.Count(t.columns, ",")+1)
	go func() {
		t.fill(r)
		_ = writer.CloseWithError(r.end()) // always nil
	}()
	tag, err := conn.PgConn().CopyFrom(ctx, reader, "COPY "+t.String()+" ("+t.columns+") FROM STDIN "+options)
	_ = reader.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // ends the maker of rows, always nil
	return tag.RowsAffected(), err
}

func (t table) index(ctx context.Context, tx pgx.Tx, constraints, indexes []object) error {
	for _, o := range constraints {
		if _, err := tx.Exec(ctx, "ALTER TABLE "+t.String()+" ADD CONSTRAINT "+o.name+" "+o.definition); err != nil {
			return err
		}
	}
	for _, o := range indexes {
		if _, err := tx.Exec(ctx, o.definition); err != nil {
			return err
		}
	}
	return nil
}

// foreignKey is one, on a table.
type foreignKey struct {
	on string
	object
}

// foreignKeys are those of the tables and those that refer to them, by schema: a table that others refer to cannot be emptied by itself.
func foreignKeys(ctx context.Context, conn *pgx.Conn, tables []table) (map[string][]foreignKey, error) {
	out := map[string][]foreignKey{}
	for _, schema := range []string{"inventory", "issuance", "renewalscheduler", "audit"} {
		var names []string
		for _, t := range tables {
			if t.schema == schema {
				names = append(names, t.String())
			}
		}
		found, err := conn.Query(ctx, `SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
 WHERE contype = 'f' AND (conrelid = ANY($1::text[]::regclass[]) OR confrelid = ANY($1::text[]::regclass[])) ORDER BY 1, 2`, names)
		if err != nil {
			return nil, fmt.Errorf("read foreign keys: %w", err)
		}
		keys, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (k foreignKey, err error) {
			err = row.Scan(&k.on, &k.name, &k.definition)
			return k, err
		})
		if err != nil {
			return nil, fmt.Errorf("read foreign keys: %w", err)
		}
		out[schema] = keys
	}
	return out, nil
}

// settle leaves the table as vacuum leaves that of an installation that runs: there are statistics, and it is known what all may see.
func (t table) settle(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "VACUUM (ANALYZE) "+t.String()); err != nil {
		return fmt.Errorf("vacuum %s: %w", t, err)
	}
	return nil
}

func (k foreignKey) drop(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "ALTER TABLE "+k.on+" DROP CONSTRAINT "+k.name); err != nil {
		return fmt.Errorf("drop foreign key %s of %s: %w", k.name, k.on, err)
	}
	return nil
}

// add also proves that every row refers to one that is there.
func (k foreignKey) add(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "ALTER TABLE "+k.on+" ADD CONSTRAINT "+k.name+" "+k.definition); err != nil {
		return fmt.Errorf("add foreign key %s of %s: %w", k.name, k.on, err)
	}
	return nil
}

package pg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// errSchemaBehind tells that the schema lacks migrations that this build knows.
var errSchemaBehind = errors.New("the schema is behind this version of certctl")

// schemaReady asks whether all migrations that this build has are applied. A schema that is ahead is fine: the version before
// runs beside the version after.
func schemaReady(ctx context.Context, pool *Pool, s Schema) error {
	want, err := s.latest()
	if err != nil {
		return err
	}
	var got int64
	table := ident(s.Name, versionTable)
	if err := pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+table+" WHERE is_applied").Scan(&got); err != nil {
		return fmt.Errorf("read version of schema %s: %w", s.Name, adviseUnreadable(err, s.Name))
	}
	if got < want {
		return &Problem{
			Advice: fmt.Sprintf("the schema %q is at version %d and this certctl needs %d: run `certctl migrate` of this version "+
				"(in Kubernetes the job …-migrate does)", s.Name, got, want),
			Cause: errSchemaBehind,
		}
	}
	return nil
}

// latest is the version of the newest migration, the number at the head of its file's name.
func (s Schema) latest() (int64, error) {
	files, err := fs.Glob(s.FS, "migrations/*.sql")
	if err != nil || len(files) == 0 {
		return 0, errors.Join(fmt.Errorf("schema %s has no migrations", s.Name), err)
	}
	versions := make([]int64, 0, len(files))
	for _, f := range files {
		number, _, _ := strings.Cut(path.Base(f), "_")
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s of schema %s: its name must begin with a number", f, s.Name)
		}
		versions = append(versions, v)
	}
	return slices.Max(versions), nil
}

// mendable tells whether waiting may mend err when an operator or `certctl migrate` works at the other end: besides what
// passes by itself, a role, password, database or schema that is not there yet.
func mendable(err error) bool {
	return Transient(err) || errors.Is(err, errSchemaBehind) || hasCode(err, codeInvalidPassword, codeInvalidAuthorization,
		codeInvalidCatalog, codeInsufficientRights, codeUndefinedTable, codeInvalidSchema)
}

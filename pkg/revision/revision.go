// Package revision keeps a number per collection that is raised in the transaction of each change, so that a reader
// can tell with one indexed read whether a list is still the same.
package revision

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certctl/certctl/pkg/errs"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

// Schema is the table that a service's migration makes. A collection's revision is the sum over its shards: writers on
// different connections raise different rows, so that no row is locked by every writer.
const Schema = `CREATE TABLE collection_revisions (
    collection text     NOT NULL,
    shard      smallint NOT NULL,
    revision   bigint   NOT NULL,
    PRIMARY KEY (collection, shard)
);`

// Execer runs one statement; pgx.Tx is one.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Bump raises the revisions of the collections. It belongs at the end of the transaction of the change, once, so that
// rows are locked briefly and in one order.
func Bump(ctx context.Context, tx Execer, collections ...string) error {
	sorted := slices.Compact(slices.Sorted(slices.Values(collections)))
	_, err := tx.Exec(ctx, `INSERT INTO collection_revisions AS c (collection, shard, revision)
SELECT name, pg_backend_pid() % 64, 1 FROM unnest($1::text[]) WITH ORDINALITY AS n (name, place) ORDER BY place
ON CONFLICT (collection, shard) DO UPDATE SET revision = c.revision + 1`, sorted)
	if err != nil {
		return fmt.Errorf("raise revision: %w", err)
	}
	return nil
}

// Querier runs one query: the pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Get answers the revision of a collection; 0: never changed.
func Get(ctx context.Context, db Querier, collection string) (int64, error) {
	var r int64
	err := db.QueryRow(ctx, `SELECT coalesce(sum(revision), 0)::bigint FROM collection_revisions WHERE collection = $1`, collection).Scan(&r)
	if err != nil {
		return 0, fmt.Errorf("read revision: %w", err)
	}
	return r, nil
}

// Server answers certctl.event.v1.RevisionService for the collections of one service.
type Server struct {
	db          Querier
	collections []string
}

// NewServer serves the revisions of the named collections.
func NewServer(db Querier, collections ...string) *Server {
	return &Server{db: db, collections: collections}
}

// GetRevision implements eventv1.RevisionServiceServer.
func (s *Server) GetRevision(ctx context.Context, r *eventv1.GetRevisionRequest) (*eventv1.GetRevisionResponse, error) {
	if !slices.Contains(s.collections, r.GetCollection()) {
		return nil, errs.Field("collection", "%q is not a collection of this service", r.GetCollection())
	}
	n, err := Get(ctx, s.db, r.GetCollection())
	if err != nil {
		return nil, err
	}
	return &eventv1.GetRevisionResponse{Revision: n}, nil
}

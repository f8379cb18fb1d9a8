// Package mutation holds what every changing RPC needs: the idempotency key that makes a repeat answer the same, and
// the revision that makes a write conditional.
package mutation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
)

// Metadata keys in which the gateway hands over the headers of a REST call.
const (
	// KeyMetadata carries Idempotency-Key.
	KeyMetadata = rpc.MetadataIdempotencyKey
	// IfMatchMetadata carries If-Match.
	IfMatchMetadata = rpc.MetadataIfMatch
)

// Retention is how long a key answers the same.
const Retention = 24 * time.Hour

// maxKey is the longest idempotency key, in bytes.
const maxKey = 128

// Schema is the table that a service's migration makes.
const Schema = `CREATE TABLE idempotency_keys (
    caller      text        NOT NULL,
    key         text        NOT NULL,
    request     bytea       NOT NULL,
    response    bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_keys_create_time ON idempotency_keys (create_time);`

// Change is one mutation.
type Change[T proto.Message] struct {
	// Request is the message as it came; its field request_id, if it has one, is an idempotency key.
	Request proto.Message
	// Prepare, if set, asks and checks before the transaction. It is skipped for a repeat.
	Prepare func(ctx context.Context) error
	// Apply makes the change and answers; it runs again when the transaction is retried.
	Apply func(ctx context.Context, tx pgx.Tx) (T, error)
	// Empty makes a message for the stored answer of a repeat.
	Empty func() T
}

// Do makes the change once for each (caller, key): a repeat with the same request within Retention gets the first
// answer, one with another request gets errs.Conflict IDEMPOTENCY_KEY_REUSED. Without a key it just makes the change.
func Do[T proto.Message](ctx context.Context, db *pg.DB, c Change[T]) (T, error) {
	var none T
	key, err := keyFrom(ctx, c.Request)
	if err != nil {
		return none, err
	}
	if key == "" {
		return c.run(ctx, db, nil)
	}
	hash, err := hashRequest(c.Request)
	if err != nil {
		return none, err
	}
	own := &claim{caller: rpcctx.CallerFrom(ctx).String(), key: key, hash: hash}
	stored, found, err := own.lookup(ctx, db.Pool)
	if err != nil {
		return none, err
	}
	if found {
		return unmarshal(stored, c.Empty())
	}
	return c.run(ctx, db, own)
}

func (c Change[T]) run(ctx context.Context, db *pg.DB, cl *claim) (T, error) {
	var answer T
	if c.Prepare != nil {
		if err := c.Prepare(ctx); err != nil {
			return answer, err
		}
	}
	err := db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if cl == nil {
			var err error
			answer, err = c.Apply(ctx, tx)
			return err
		}
		stored, mine, err := cl.take(ctx, tx)
		if err != nil {
			return err
		}
		if !mine {
			answer, err = unmarshal(stored, c.Empty())
			return err
		}
		answer, err = c.Apply(ctx, tx)
		if err != nil {
			return err
		}
		return cl.store(ctx, tx, answer)
	})
	if err != nil {
		var none T
		return none, err
	}
	return answer, nil
}

// claim is one key of one caller.
type claim struct {
	caller, key string
	hash        []byte
}

// querier runs one query: the pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const selectKey = `SELECT request, response FROM idempotency_keys
 WHERE caller = $1 AND key = $2 AND create_time > now() - $3::interval`

// lookup finds the stored answer of a repeat.
func (c *claim) lookup(ctx context.Context, db querier) ([]byte, bool, error) {
	var request, response []byte
	err := db.QueryRow(ctx, selectKey, c.caller, c.key, Retention).Scan(&request, &response)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up idempotency key: %w", err)
	}
	if !bytes.Equal(request, c.hash) {
		return nil, false, errs.New(errs.Conflict, "IDEMPOTENCY_KEY_REUSED",
			"the idempotency key was used with another request; take a new key for a new request")
	}
	return response, true, nil
}

// take claims the key in the transaction of the change; a concurrent holder is waited for.
func (c *claim) take(ctx context.Context, tx pgx.Tx) (stored []byte, mine bool, err error) {
	tag, err := tx.Exec(ctx, `INSERT INTO idempotency_keys AS k (caller, key, request) VALUES ($1, $2, $3)
ON CONFLICT (caller, key) DO UPDATE SET request = excluded.request, response = NULL, create_time = now()
 WHERE k.create_time <= now() - $4::interval`, c.caller, c.key, c.hash, Retention)
	if err != nil {
		return nil, false, fmt.Errorf("claim idempotency key: %w", err)
	}
	if tag.RowsAffected() == 1 {
		return nil, true, nil
	}
	stored, found, err := c.lookup(ctx, tx)
	if err != nil {
		return nil, false, err
	}
	if !found {
		return nil, false, errs.New(errs.Unavailable, "IDEMPOTENCY_KEY_BUSY", "the idempotency key is in use; try again")
	}
	return stored, false, nil
}

func (c *claim) store(ctx context.Context, tx pgx.Tx, answer proto.Message) error {
	b, err := proto.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = tx.Exec(ctx, `UPDATE idempotency_keys SET response = $3 WHERE caller = $1 AND key = $2`, c.caller, c.key, b)
	if err != nil {
		return fmt.Errorf("store answer: %w", err)
	}
	return nil
}

// Execer runs one statement: the pool or a transaction.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Prune deletes keys older than Retention and answers how many.
func Prune(ctx context.Context, db Execer) (int, error) {
	tag, err := db.Exec(ctx, `DELETE FROM idempotency_keys WHERE create_time < now() - $1::interval`, Retention)
	if err != nil {
		return 0, fmt.Errorf("prune idempotency keys: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// Revision answers the revision that the caller expects: the message's field, or the header If-Match. 0: any.
// A header that is no revision in quotes fails with errs.PreconditionFailed, since no revision can match it.
func Revision(ctx context.Context, field int32) (int32, error) {
	if field != 0 {
		return field, nil
	}
	header := first(ctx, IfMatchMetadata)
	if header == "" || header == "*" {
		return 0, nil
	}
	n, ok := parseETag(header)
	if !ok {
		return 0, errs.New(errs.PreconditionFailed, "REVISION_MISMATCH",
			`If-Match %q is not a revision; send the resource's revision in quotes, for example "3"`, header)
	}
	return n, nil
}

// parseETag reads the one spelling that a revision has as a strong entity tag. A weak tag never matches If-Match
// (RFC 9110, section 13.1.1), and no two revisions are current at once, so a list is not read either.
func parseETag(header string) (int32, bool) {
	n, err := strconv.ParseInt(strings.Trim(header, `"`), 10, 32)
	return int32(n), err == nil && n > 0 && header == fmt.Sprintf(`"%d"`, n)
}

// Mismatch is the error for a write whose expected revision is no longer current.
func Mismatch(resource string, expected, current int32) error {
	return errs.New(errs.PreconditionFailed, "REVISION_MISMATCH", "%s has revision %d, not %d; read it again", resource, current, expected).
		With("revision", strconv.Itoa(int(current)))
}

func keyFrom(ctx context.Context, request proto.Message) (string, error) {
	key := ""
	if fd := requestIDField(request); fd != nil {
		key = request.ProtoReflect().Get(fd).String()
	}
	if key == "" {
		key = first(ctx, KeyMetadata)
	}
	if len(key) > maxKey {
		return "", errs.Field("request_id", "is longer than %d bytes", maxKey)
	}
	return key, nil
}

func first(ctx context.Context, key string) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func requestIDField(m proto.Message) protoreflect.FieldDescriptor {
	return m.ProtoReflect().Descriptor().Fields().ByName("request_id")
}

// hashRequest binds the key to the kind and content of the request, its own request_id left out.
func hashRequest(m proto.Message) ([]byte, error) {
	c := proto.Clone(m)
	if fd := requestIDField(c); fd != nil {
		c.ProtoReflect().Clear(fd)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	h := sha256.New()
	h.Write([]byte(c.ProtoReflect().Descriptor().FullName()))
	h.Write([]byte{0})
	h.Write(b)
	return h.Sum(nil), nil
}

func unmarshal[T proto.Message](b []byte, into T) (T, error) {
	if err := proto.Unmarshal(b, into); err != nil {
		var none T
		return none, fmt.Errorf("decode stored answer: %w", err)
	}
	return into, nil
}

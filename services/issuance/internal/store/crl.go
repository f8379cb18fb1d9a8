package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// CRL is a certificate revocation list.
type CRL struct {
	IssuerID string
	Number   int64
	CRLExtent

	ThisUpdate time.Time
	NextUpdate time.Time
	// Head, the entries and Tail are its DER; without a Tail, Head is all of it. LatestCRL leaves them out.
	Head, Tail []byte
}

// CRLExtent is how many entries of a generation of parts a CRL lists: the first Entries, which take Size bytes.
type CRLExtent struct {
	Generation int64 // 0: it was made by a version that knows of no parts
	Entries    int
	Size       int64
}

// Bytes is how many all of it has, and how many of them are read from the parts.
func (c CRL) Bytes() (all, fromParts int64) {
	if len(c.Tail) == 0 {
		return int64(len(c.Head)), 0
	}
	return int64(len(c.Head)) + c.Size + int64(len(c.Tail)), c.Size
}

// CRLPart is a piece of the entries of an issuer's CRLs.
type CRLPart struct {
	IssuerID  string
	Part      int // in its generation, from 1
	CRLExtent     // up to its end

	BeginTime time.Time // of the generation
	Length    int       // in bytes
}

// LockCRL lets one transaction at a time add to the parts of an issuer.
func LockCRL(ctx context.Context, tx pgx.Tx, issuerID string) error {
	_, err := changed(ctx, tx, "lock CRL", `SELECT pg_advisory_xact_lock(hashtextextended('crl ' || $1, 0))`, issuerID)
	return err
}

// LatestCRL is the newest CRL of an issuer, without its bytes, and whether another one is to be made: revocations wait for it, or the
// version before has made the last one.
func LatestCRL(ctx context.Context, q Querier, issuerID string) (c CRL, unlisted bool, err error) {
	c.IssuerID = issuerID
	err = q.QueryRow(ctx, `SELECT c.number, c.generation, c.entries, c.size, c.this_update, c.next_update, c.generation = 0
 OR EXISTS (SELECT 1 FROM revocations r WHERE r.issuer_id = c.issuer_id AND r.crl_number IS NULL)
 OR COALESCE((SELECT (p.generation, p.size) > (c.generation, c.size) FROM crl_parts p WHERE p.issuer_id = c.issuer_id
  ORDER BY p.generation DESC, p.part DESC LIMIT 1), false)
 FROM crls c WHERE c.issuer_id = $1 ORDER BY c.number DESC LIMIT 1`, issuerID).
		Scan(&c.Number, &c.Generation, &c.Entries, &c.Size, &c.ThisUpdate, &c.NextUpdate, &unlisted)
	c, err = one("read CRL", c, err)
	return c, unlisted, err
}

// GetCRL reads a CRL.
func GetCRL(ctx context.Context, q Querier, issuerID string, number int64) (CRL, error) {
	c := CRL{IssuerID: issuerID, Number: number}
	err := q.QueryRow(ctx, `SELECT c.generation, c.entries, c.size, c.this_update, c.next_update, c.der, c.tail
 FROM crls c WHERE c.issuer_id = $1 AND c.number = $2`, issuerID, number).
		Scan(&c.Generation, &c.Entries, &c.Size, &c.ThisUpdate, &c.NextUpdate, &c.Head, &c.Tail)
	return one("read CRL", c, err)
}

// InsertCRL stores a CRL, and drops old ones and the parts that none needs any more. It is false when another replica has stored that
// number.
func InsertCRL(ctx context.Context, q Querier, c CRL) (bool, error) {
	n, err := changed(ctx, q, "store CRL", `INSERT INTO crls (issuer_id, number, generation, entries, size, this_update, next_update, der, tail)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (issuer_id, number) DO NOTHING`,
		c.IssuerID, c.Number, c.Generation, c.Entries, c.Size, c.ThisUpdate, c.NextUpdate, bytesOf(c.Head), bytesOf(c.Tail))
	if err != nil || n == 0 {
		return false, err
	}
	// Who reads a large one in pieces may need long: it goes when it has not been the newest for a while.
	const keptAtLeast, keptFor = 10, 15 * time.Minute
	_, err = changed(ctx, q, "drop old CRLs", `WITH old (number) AS (SELECT least($2, max(number) - 1) FROM crls WHERE issuer_id = $1 AND this_update < $3 HAVING count(*) > 0),
 dropped AS (DELETE FROM crls c USING old WHERE c.issuer_id = $1 AND c.number <= old.number)
 DELETE FROM crl_parts p USING old WHERE p.issuer_id = $1 AND p.generation < (SELECT min(generation) FROM crls WHERE issuer_id = $1 AND crls.number > old.number)`,
		c.IssuerID, c.Number-keptAtLeast, c.ThisUpdate.Add(-keptFor))
	return err == nil, err
}

// bytesOf never stores NULL for no bytes.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// LastCRLPart is the part that the next entries of an issuer are added to or come after.
func LastCRLPart(ctx context.Context, q Querier, issuerID string) (CRLPart, error) {
	p := CRLPart{IssuerID: issuerID}
	err := q.QueryRow(ctx, `SELECT p.generation, p.part, p.begin_time, p.entries, p.size, octet_length(p.der)
 FROM crl_parts p WHERE p.issuer_id = $1 ORDER BY p.generation DESC, p.part DESC LIMIT 1`, issuerID).
		Scan(&p.Generation, &p.Part, &p.BeginTime, &p.Entries, &p.Size, &p.Length)
	return one("read part of CRL", p, err)
}

// PutCRLPart stores a part with the entries that are new in it, or adds them to one that there is.
func PutCRLPart(ctx context.Context, q Querier, p CRLPart, fresh []byte) error {
	_, err := changed(ctx, q, "store part of CRL", `INSERT INTO crl_parts (issuer_id, generation, part, begin_time, entries, size, der)
 VALUES ($1, $2, $3, $4, $5, $6, $7)
 ON CONFLICT (issuer_id, generation, part) DO UPDATE SET entries = EXCLUDED.entries, size = EXCLUDED.size, der = crl_parts.der || EXCLUDED.der`,
		p.IssuerID, p.Generation, p.Part, p.BeginTime, p.Entries, p.Size, bytesOf(fresh))
	return err
}

// CRLEntries reads entries of a CRL from a byte on, and some: those of a few parts, in order. There are none from its size on.
func CRLEntries(ctx context.Context, q Querier, c CRL, from int64) ([]byte, error) {
	const parts = 3 // up to half a megabyte each
	rows, err := q.Query(ctx, `SELECT p.size, p.der FROM crl_parts p WHERE p.issuer_id = $1 AND p.generation = $2 AND p.size > $3 ORDER BY p.part LIMIT $4`,
		c.IssuerID, c.Generation, from, parts)
	if err != nil {
		return nil, fmt.Errorf("read parts of CRL: %w", err)
	}
	var out, der []byte
	var end int64
	_, err = pgx.ForEachRow(rows, []any{&end, &der}, func() error {
		first := max(from-(end-int64(len(der))), 0) // of this part
		last := int64(len(der)) - max(end-c.Size, 0)
		if first < last {
			out = append(out, der[first:last]...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read parts of CRL: %w", err)
	}
	return out, nil
}

// Listed is a revocation as a CRL lists it.
type Listed struct {
	SerialNumber   string
	RevocationTime time.Time
	Reason         int16
}

// ListRevocations gives revocations of an issuer that no CRL lists, in no order, and notes that the one of that number does. The array
// has them found one by one: as a join, many of them would be found by reading all that there are.
func ListRevocations(ctx context.Context, q Querier, issuerID string, number int64, limit int) ([]Listed, error) {
	return collect(ctx, q, "list revocations", pgx.RowToStructByPos[Listed], `UPDATE revocations r SET crl_number = $2
 WHERE r.id = ANY(ARRAY(SELECT u.id FROM revocations u WHERE u.issuer_id = $1 AND u.crl_number IS NULL LIMIT $3))
 RETURNING r.serial_number, r.revocation_time, r.reason`, issuerID, number, limit)
}

// RevocationsListed gives those that a CRL lists already and whose certificates have not ended before a time, in the order of their
// serial numbers, from behind one on.
func RevocationsListed(ctx context.Context, q Querier, issuerID string, endedAfter time.Time, after string, limit int) ([]Listed, error) {
	return collect(ctx, q, "read listed revocations", pgx.RowToStructByPos[Listed], `SELECT r.serial_number, r.revocation_time, r.reason
 FROM revocations r WHERE r.issuer_id = $1 AND r.serial_number > $2 AND r.not_after > $3 AND r.crl_number IS NOT NULL
 ORDER BY r.serial_number LIMIT $4`, issuerID, after, endedAfter, limit)
}

package pg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Columns reads the columns of one row, one after the other in the order of the statement. It is for the lists that users page
// through: pgx finds a way from each column to each field of each row anew, and makes each text by itself, which takes half of the
// time of a page. All texts of a row share one piece of memory. What Postgres has not sent in binary goes the way of pgx.
type Columns struct {
	fields []pgconn.FieldDescription
	values [][]byte
	// all has the bytes of all columns; the next one's begin at from.
	all  string
	from int
	next int
	err  error
}

// RowTo makes a reader of rows for pgx.CollectRows, of a function that reads all columns.
func RowTo[T any](read func(*Columns) T) pgx.RowToFunc[T] {
	return func(row pgx.CollectableRow) (T, error) {
		c := Columns{fields: row.FieldDescriptions(), values: row.RawValues()}
		c.gather()
		v := read(&c)
		if c.err == nil && c.next != len(c.fields) {
			c.err = fmt.Errorf("%d columns of %d were read", c.next, len(c.fields))
		}
		return v, c.err
	}
}

func (c *Columns) gather() {
	size := 0
	for _, v := range c.values {
		size += len(v)
	}
	var all strings.Builder
	all.Grow(size)
	for _, v := range c.values {
		all.Write(v)
	}
	c.all = all.String()
}

// column is one that was sent.
type column struct {
	pgconn.FieldDescription
	value []byte // nil is NULL
	text  string // the same
}

// take gives the next column; plain tells that it is of the type, and in the format that is read here.
func (c *Columns) take(oid uint32, format int16) (v column, plain bool) {
	if c.next >= len(c.fields) {
		c.fail(errors.New("there is no further column"))
		return v, true
	}
	v.FieldDescription, v.value = c.fields[c.next], c.values[c.next]
	v.text = c.all[c.from : c.from+len(v.value)]
	c.from += len(v.value)
	c.next++
	return v, v.DataTypeOID == oid && v.Format == format
}

func (c *Columns) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// typeMaps know the types of Postgres; one is used by one goroutine at a time.
var typeMaps = sync.Pool{New: func() any { return pgtype.NewMap() }}

// scan reads a column as pgx does.
func (c *Columns) scan(v column, into any) {
	m, ok := typeMaps.Get().(*pgtype.Map)
	if !ok {
		return // there is nothing else in it
	}
	defer typeMaps.Put(m)
	if err := m.Scan(v.DataTypeOID, v.Format, v.value, into); err != nil {
		c.fail(fmt.Errorf("read column %s: %w", v.Name, err))
	}
}

// scanned is apart from those who call it: what scan is given a pointer to is in memory of its own, also when it is not called.
func scanned[T any](c *Columns, v column) (into T) {
	c.scan(v, &into)
	return into
}

// Text reads a text that is not NULL.
func (c *Columns) Text() string {
	v, plain := c.take(pgtype.TextOID, pgtype.TextFormatCode)
	if plain && v.value != nil {
		return v.text
	}
	return scanned[string](c, v)
}

// Texts reads an array of texts.
func (c *Columns) Texts() []string {
	v, plain := c.take(pgtype.TextArrayOID, pgtype.BinaryFormatCode)
	if plain && v.value != nil {
		if list, ok := texts(v); ok {
			return list
		}
	}
	return scanned[[]string](c, v)
}

// texts reads the binary form of an array (array_send in PostgreSQL's arrayfuncs.c): the dimensions, whether there are NULLs, the
// type; size and lower bound of each dimension; then each element with its length. Others than plain lists it leaves alone.
func texts(v column) (list []string, ok bool) {
	const head, dimension, length = 12, 8, 4
	b := v.value
	if len(b) < head || binary.BigEndian.Uint32(b[4:]) != 0 {
		return nil, false
	}
	switch binary.BigEndian.Uint32(b) {
	case 0:
		return []string{}, true
	case 1:
	default:
		return nil, false
	}
	n := int(binary.BigEndian.Uint32(b[head:]))
	list = make([]string, 0, n)
	at := head + dimension
	for range n {
		size := int(binary.BigEndian.Uint32(b[at:]))
		list = append(list, v.text[at+length:at+length+size])
		at += length + size
	}
	return list, true
}

// JSON reads a jsonb that is not NULL, as its text.
func (c *Columns) JSON() string {
	v, plain := c.take(pgtype.JSONBOID, pgtype.TextFormatCode)
	if plain && v.value != nil {
		return v.text
	}
	return scanned[string](c, v)
}

// Check notes an error of who reads what a column holds.
func (c *Columns) Check(err error) {
	if err != nil {
		c.fail(err)
	}
}

// Int32 reads an integer that is not NULL.
func (c *Columns) Int32() int32 {
	v, plain := c.take(pgtype.Int4OID, pgtype.BinaryFormatCode)
	if plain && len(v.value) == 4 {
		return int32(binary.BigEndian.Uint32(v.value))
	}
	return scanned[int32](c, v)
}

// Int64 reads a bigint that is not NULL.
func (c *Columns) Int64() int64 {
	v, plain := c.take(pgtype.Int8OID, pgtype.BinaryFormatCode)
	if plain && len(v.value) == 8 {
		return int64(binary.BigEndian.Uint64(v.value))
	}
	return scanned[int64](c, v)
}

// epoch is where Postgres' times begin, in microseconds since 1970.
var epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// Time reads a timestamptz that is not NULL.
func (c *Columns) Time() time.Time {
	t := c.Moment()
	if t == nil {
		c.fail(errors.New("a time is NULL"))
		return time.Time{}
	}
	return *t
}

// Moment reads a timestamptz; nil is NULL.
func (c *Columns) Moment() *time.Time {
	v, plain := c.take(pgtype.TimestamptzOID, pgtype.BinaryFormatCode)
	if v.value == nil {
		return nil
	}
	if plain && len(v.value) == 8 && finite(v.value) {
		t := time.UnixMicro(epoch + int64(binary.BigEndian.Uint64(v.value)))
		return &t
	}
	t := scanned[time.Time](c, v)
	return &t
}

// finite tells a time from infinity and -infinity, which are the largest and the smallest number.
func finite(b []byte) bool {
	n := binary.BigEndian.Uint64(b)
	return n != 1<<63-1 && n != 1<<63
}

// Bytes reads a bytea; nil is NULL.
func (c *Columns) Bytes() []byte {
	v, plain := c.take(pgtype.ByteaOID, pgtype.BinaryFormatCode)
	if plain {
		return bytes.Clone(v.value) // the next row overwrites it
	}
	return scanned[[]byte](c, v)
}

// Into reads a column of any type as pgx does.
func (c *Columns) Into(into any) {
	v, _ := c.take(0, 0)
	c.scan(v, into)
}

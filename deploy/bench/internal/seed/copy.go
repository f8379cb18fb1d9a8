package seed

import (
	"encoding/binary"
	"io"
)

// pgEpoch is 2000-01-01, from which Postgres counts, in microseconds of Unix time.
const pgEpoch = 946_684_800_000_000

// flushAt is how many bytes are gathered before they go to the server.
const flushAt = 128 << 10

// oidText is the type of the elements of a text[].
const oidText = 25

// rows writes rows in the binary format of COPY (PostgreSQL manual, COPY, "Binary Format"). pgx's own CopyFrom cannot say FREEZE.
type rows struct {
	out     io.Writer
	columns int
	buf     []byte
	count   int64
	err     error
}

func newRows(out io.Writer, columns int) *rows {
	r := &rows{out: out, columns: columns, buf: make([]byte, 0, flushAt+flushAt/2)}
	r.buf = append(r.buf, "PGCOPY\n\xff\r\n\x00"...)
	r.buf = append(r.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	return r
}

// next begins a row. It is false when the server takes no more.
func (r *rows) next() bool {
	if len(r.buf) >= flushAt {
		r.flush()
	}
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(r.columns))
	r.count++
	return r.err == nil
}

func (r *rows) flush() {
	if r.err == nil {
		_, r.err = r.out.Write(r.buf)
	}
	r.buf = r.buf[:0]
}

// end writes the trailer.
func (r *rows) end() error {
	r.buf = binary.BigEndian.AppendUint16(r.buf, 0xffff)
	r.flush()
	return r.err
}

func (r *rows) size(n int) { r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(n)) }

func (r *rows) null() { r.size(-1) }

// text also writes json, whose binary form is its text.
func (r *rows) text(values ...string) {
	for _, s := range values {
		r.size(len(s))
		r.buf = append(r.buf, s...)
	}
}

func (r *rows) bytea(b []byte) {
	r.size(len(b))
	r.buf = append(r.buf, b...)
}

func (r *rows) jsonb(s string) {
	const version = 1
	r.size(len(s) + 1)
	r.buf = append(r.buf, version)
	r.buf = append(r.buf, s...)
}

func (r *rows) uuid(id [16]byte) { r.bytea(id[:]) }

func (r *rows) bool(b bool) {
	r.size(1)
	if b {
		r.buf = append(r.buf, 1)
		return
	}
	r.buf = append(r.buf, 0)
}

func (r *rows) int2(n int) {
	r.size(2)
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(n))
}

func (r *rows) int4(values ...int) {
	for _, n := range values {
		r.size(4)
		r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(n))
	}
}

func (r *rows) int8(n int64) {
	r.size(8)
	r.buf = binary.BigEndian.AppendUint64(r.buf, uint64(n))
}

// time writes timestamptz; 0 is NULL.
func (r *rows) time(stamps ...stamp) {
	for _, t := range stamps {
		if t == 0 {
			r.null()
			continue
		}
		r.int8(int64(t) - pgEpoch)
	}
}

// array writes text[].
func (r *rows) array(list []string) {
	if len(list) == 0 {
		r.size(12)
		for _, n := range []uint32{0, 0, oidText} {
			r.buf = binary.BigEndian.AppendUint32(r.buf, n)
		}
		return
	}
	size := 20
	for _, s := range list {
		size += 4 + len(s)
	}
	r.size(size)
	for _, n := range []uint32{1, 0, oidText, uint32(len(list)), 1} {
		r.buf = binary.BigEndian.AppendUint32(r.buf, n)
	}
	r.text(list...)
}

// byteas writes bytea[] of at least one element.
func (r *rows) byteas(list [][]byte) {
	const oidBytea = 17
	size := 20
	for _, b := range list {
		size += 4 + len(b)
	}
	r.size(size)
	for _, n := range []uint32{1, 0, oidBytea, uint32(len(list)), 1} {
		r.buf = binary.BigEndian.AppendUint32(r.buf, n)
	}
	for _, b := range list {
		r.bytea(b)
	}
}

package page

import (
	"encoding/binary"
	"errors"
	"time"
)

// Kind is the type of a sort key.
type Kind uint8

// The types of sort keys.
const (
	Null Kind = iota
	Text
	Time
	Int
)

// Value is one sort key of a row. The zero value is SQL NULL.
type Value struct {
	kind Kind
	text string
	num  int64
}

// TextValue is a key of type text.
func TextValue(s string) Value { return Value{kind: Text, text: s} }

// IntValue is a key of an integer type.
func IntValue(n int64) Value { return Value{kind: Int, num: n} }

// TimeValue is a key of type timestamptz, in Postgres's own precision of a microsecond. The zero time is NULL.
func TimeValue(t time.Time) Value {
	if t.IsZero() {
		return Value{}
	}
	return Value{kind: Time, num: t.UnixMicro()}
}

// Kind tells the type; Null for NULL.
func (v Value) Kind() Kind { return v.kind }

// Arg returns the value as a query argument.
func (v Value) Arg() any {
	switch v.kind {
	case Text:
		return v.text
	case Time:
		return time.UnixMicro(v.num).UTC()
	case Int:
		return v.num
	default:
		return nil
	}
}

// Cursor is the place in a list after which the next page begins: the order's key of the last row seen, and its id.
// When the list is ordered by the id alone it holds just that. An empty cursor is the beginning.
type Cursor []Value

// maxValues is how many keys a cursor may have.
const maxValues = 2

var errMalformed = errors.New("malformed cursor")

func (c Cursor) encode(b []byte) []byte {
	b = append(b, byte(len(c)))
	for _, v := range c {
		b = append(b, byte(v.kind))
		switch v.kind {
		case Text:
			b = binary.AppendUvarint(b, uint64(len(v.text)))
			b = append(b, v.text...)
		case Time, Int:
			b = binary.AppendVarint(b, v.num)
		case Null:
		}
	}
	return b
}

func decodeCursor(b []byte) (Cursor, error) {
	if len(b) == 0 || b[0] > maxValues {
		return nil, errMalformed
	}
	n := int(b[0])
	b = b[1:]
	c := make(Cursor, 0, n)
	for range n {
		v, rest, err := decodeValue(b)
		if err != nil {
			return nil, err
		}
		c, b = append(c, v), rest
	}
	if len(b) != 0 {
		return nil, errMalformed
	}
	return c, nil
}

func decodeValue(b []byte) (v Value, rest []byte, err error) {
	if len(b) == 0 {
		return Value{}, nil, errMalformed
	}
	v.kind, b = Kind(b[0]), b[1:]
	switch v.kind {
	case Null:
		return v, b, nil
	case Text:
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return Value{}, nil, errMalformed
		}
		b = b[used:]
		v.text = string(b[:n])
		return v, b[n:], nil
	case Time, Int:
		n, used := binary.Varint(b)
		if used <= 0 {
			return Value{}, nil, errMalformed
		}
		v.num = n
		return v, b[used:], nil
	default:
		return Value{}, nil, errMalformed
	}
}

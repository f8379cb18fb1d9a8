package rest

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// appendFloat writes as ECMA-262 does, like encoding/json.
func appendFloat(b []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(b, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(b, `"-Infinity"`...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 {
		if bits == 64 && (abs < 1e-6 || abs >= 1e21) || bits == 32 && (float32(abs) < 1e-6 || float32(abs) >= 1e21) {
			format = 'e'
		}
	}
	b = strconv.AppendFloat(b, f, format, -1, bits)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09 is e-9
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// The range of a Timestamp (google/protobuf/timestamp.proto).
const (
	minTimestamp = -62135596800
	maxTimestamp = 253402300799
)

// appendTime writes RFC 3339 in UTC with 0, 3, 6 or 9 digits of the second.
func appendTime(b []byte, seconds int64, nanos int32) ([]byte, error) {
	if seconds < minTimestamp || seconds > maxTimestamp || nanos < 0 || nanos > 999_999_999 {
		return nil, fmt.Errorf("write a timestamp: %d s, %d ns are out of range", seconds, nanos)
	}
	b = time.Unix(seconds, 0).UTC().AppendFormat(append(b, '"'), time.RFC3339) // the one layout that package time has code for
	if nanos > 0 {
		b = appendFraction(b[:len(b)-len("Z")], nanos)
		b = append(b, 'Z')
	}
	return append(b, '"'), nil
}

func appendFraction(b []byte, nanos int32) []byte {
	digits := 9
	for nanos%1000 == 0 {
		nanos, digits = nanos/1000, digits-3
	}
	b = append(b, ".000000000"[:digits+1]...)
	for i := len(b) - 1; nanos > 0; i-- {
		b[i] = '0' + byte(nanos%10)
		nanos /= 10
	}
	return b
}

var errNotUTF8 = errors.New("write a string: it is not UTF-8")

// appendString quotes as RFC 8259, section 7 asks, and no more.
func appendString(b, s []byte) ([]byte, error) {
	b = append(b, '"')
	if plain(s) {
		return append(append(b, s...), '"'), nil
	}
	if !utf8.Valid(s) {
		return nil, errNotUTF8
	}
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
	}
	return append(append(b, s[from:]...), '"'), nil
}

// plain tells that a text is ASCII without escapes, as nearly all are.
func plain(s []byte) bool {
	for _, c := range s {
		if c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

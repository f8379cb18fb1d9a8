package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A check tag holds one or more of these, with semicolons between them:
//
//	required                      a value must be given
//	duration>=1s   duration 1s..24h   duration 1s..
//	int>=1         int 1..1000        int ..10
//	float 0..1
//	oneof api-key none
//	address                       host:port; the host may be empty
//	url https postgres            a URL with one of the schemes, or any when none is named
//	absolute                      an absolute path
//
// All but required pass an empty value. On a list or a map they hold for each element.
type check struct {
	words    string
	required bool
	test     func(v reflect.Value) bool
}

// check runs the checks of the field on its value.
func (f field) check(v reflect.Value) error {
	for _, c := range f.checks {
		if c.required {
			if v.IsZero() || isEmptySecret(v) {
				return errors.New("is required and not set")
			}
			continue
		}
		if err := f.checkEach(c, v); err != nil {
			return err
		}
	}
	return nil
}

func isEmptySecret(v reflect.Value) bool {
	s, ok := v.Interface().(interface{ IsZero() bool })
	return ok && s.IsZero()
}

func (f field) checkEach(c check, v reflect.Value) error {
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			if err := f.checkEach(c, v.Index(i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Map:
		for _, key := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int { return cmp.Compare(a.String(), b.String()) }) {
			if err := f.checkEach(c, v.MapIndex(key)); err != nil {
				return fmt.Errorf("%v: %w", key, err)
			}
		}
		return nil
	case reflect.String:
		if v.Len() == 0 {
			return nil
		}
	default:
	}
	if !c.test(v) {
		return fmt.Errorf("%q is not allowed; it must be %s", fmt.Sprint(v), c.words)
	}
	return nil
}

func inWords(checks []check) string {
	words := make([]string, 0, len(checks))
	for _, c := range checks {
		words = append(words, c.words)
	}
	return strings.Join(words, "; ")
}

func parseChecks(tag string) ([]check, error) {
	var out []check
	for part := range strings.SplitSeq(tag, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		c, err := parseCheck(part)
		if err != nil {
			return nil, fmt.Errorf("check %q: %w", part, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func parseCheck(s string) (check, error) {
	kind, rest := splitKind(s)
	switch kind {
	case "required":
		return check{words: "required", required: true}, nil
	case "oneof":
		return oneOf(strings.Fields(rest))
	case "duration":
		return between(rest, time.ParseDuration, func(v reflect.Value) time.Duration { return time.Duration(v.Int()) })
	case "int":
		return between(rest, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }, intOf)
	case "float":
		return between(rest, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }, reflect.Value.Float)
	case "address":
		return check{words: "host:port", test: isAddress}, nil
	case "url":
		return isURL(strings.Fields(rest)), nil
	case "absolute":
		return check{words: "an absolute path", test: func(v reflect.Value) bool { return filepath.IsAbs(v.String()) }}, nil
	default:
		return check{}, errors.New("there is no such check")
	}
}

// splitKind cuts "int>=1" and "int 1..9" after the first word.
func splitKind(s string) (kind, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool { return r < 'a' || r > 'z' })
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

func intOf(v reflect.Value) int64 {
	if v.CanUint() {
		return int64(min(v.Uint(), 1<<63-1)) // bounded in the line itself
	}
	return v.Int()
}

// bound is one end of a range; nil is open.
type bound[T cmp.Ordered] struct{ low, high *T }

func between[T cmp.Ordered](s string, parse func(string) (T, error), get func(reflect.Value) T) (check, error) {
	low, high, ok := strings.Cut(s, "..")
	switch {
	case ok:
	case strings.HasPrefix(s, ">="):
		low, high = s[2:], ""
	case strings.HasPrefix(s, "<="):
		low, high = "", s[2:]
	default:
		return check{}, errors.New("a range is needed: low..high, >=low or <=high")
	}
	var b bound[T]
	for text, end := range map[string]**T{low: &b.low, high: &b.high} {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		v, err := parse(text)
		if err != nil {
			return check{}, err
		}
		*end = &v
	}
	return check{words: rangeWords(strings.TrimSpace(low), strings.TrimSpace(high)), test: func(v reflect.Value) bool { return b.holds(get(v)) }}, nil
}

func (b bound[T]) holds(v T) bool {
	return (b.low == nil || v >= *b.low) && (b.high == nil || v <= *b.high)
}

func rangeWords(low, high string) string {
	switch {
	case high == "":
		return "at least " + low
	case low == "":
		return "at most " + high
	default:
		return low + " to " + high
	}
}

func oneOf(allowed []string) (check, error) {
	if len(allowed) == 0 {
		return check{}, errors.New("values are needed")
	}
	return check{
		words: "one of " + strings.Join(allowed, ", "),
		test:  func(v reflect.Value) bool { return slices.Contains(allowed, fmt.Sprint(v)) },
	}, nil
}

func isAddress(v reflect.Value) bool {
	_, port, err := net.SplitHostPort(v.String())
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

func isURL(schemes []string) check {
	words := "a URL"
	if len(schemes) > 0 {
		words += " with " + strings.Join(schemes, " or ")
	}
	return check{words: words, test: func(v reflect.Value) bool {
		u, err := url.Parse(v.String())
		return err == nil && u.Scheme != "" && (len(schemes) == 0 || slices.Contains(schemes, u.Scheme))
	}}
}

package errs

import (
	"strconv"
	"strings"
)

// MaxViolations bounds what one error carries: a status travels in HTTP/2 trailers. The metadata entry
// "violation_count" tells the full number when some are left out.
const MaxViolations = 100

// violationCount is the metadata key of the full number of violations.
const violationCount = "violation_count"

// Violations collects what is wrong with a request, so that the caller learns all of it at once. The zero value is
// ready for use.
type Violations struct {
	kept  []Violation
	total int
}

// Add notes one field. The field is the proto field path; it is "" for the message as a whole.
func (v *Violations) Add(field, format string, a ...any) {
	v.total++
	if len(v.kept) < MaxViolations {
		v.kept = append(v.kept, Violation{Field: valid(field), Description: text(format, a)})
	}
}

// Len tells how many were added.
func (v *Violations) Len() int { return v.total }

// Err gives nil when nothing was added, else an Invalid error with reason INVALID_ARGUMENT.
func (v *Violations) Err() error {
	if v.total == 0 {
		return nil
	}
	return v.asError()
}

func (v *Violations) asError() *Error {
	e := New(Invalid, "INVALID_ARGUMENT", "%s", v.sentence())
	e.violations = v.kept
	if v.total > len(v.kept) {
		e = e.With(violationCount, strconv.Itoa(v.total))
	}
	return e
}

// sentence puts the first violation into the message, for clients that show nothing else.
func (v *Violations) sentence() string {
	first := v.kept[0]
	s := first.Description
	if first.Field != "" {
		s = first.Field + ": " + s
	}
	if v.total > 1 {
		return strings.TrimSuffix(s, ".") + " (and " + strconv.Itoa(v.total-1) + " more)"
	}
	return s
}

package search

import (
	"strconv"
	"strings"
)

// Filter gathers conditions and their arguments. The zero value finds everything.
type Filter struct {
	conditions []condition
	args       []any
}

// condition is one of a WHERE; its parameters are numbered.
type condition struct {
	sql string
	// column is what it is about, where an index may find the place by it.
	column string
	kind   kind
	// span is what the spans meet in which it is met by some row; empty: it says nothing of spans.
	span string
	// param is the number of its argument.
	param int
}

type kind int8

const (
	other     kind = iota
	equal          // column = value
	among          // column = ANY(values)
	bound          // column < value, or >
	few            // what it names is in few rows
	unindexed      // no index finds what meets it
)

func (f *Filter) add(c condition, arg any) {
	f.args = append(f.args, arg)
	c.param = len(f.args)
	number := strings.NewReplacer("?", "$"+strconv.Itoa(c.param))
	c.sql, c.span = number.Replace(c.sql), number.Replace(c.span)
	f.conditions = append(f.conditions, c)
}

// Add adds a condition; each ? in it is the argument.
func (f *Filter) Add(sql string, arg any) { f.add(condition{sql: sql}, arg) }

// Few is Add for a condition that an index finds and that few rows meet, whatever the value is.
func (f *Filter) Few(sql string, arg any) { f.add(condition{sql: sql, kind: few}, arg) }

// Unindexed is Add for a condition that no index finds: to collect what meets it would mean to read all.
func (f *Filter) Unindexed(sql string, arg any) { f.add(condition{sql: sql, kind: unindexed}, arg) }

// Bound is Add for a bound of a column, which is written as in the Order that it may be the column of.
func (f *Filter) Bound(column, sql string, arg any) {
	f.add(condition{sql: sql, column: column, kind: bound}, arg)
}

// SpannedBound is Bound for a column whose least and greatest values Table.Spans has: span is the condition that spans meet which have
// rows that meet the bound, as "latest >= ?" for "time >= ?".
func (f *Filter) SpannedBound(column, sql, span string, arg any) {
	f.add(condition{sql: sql, column: column, kind: bound, span: span}, arg)
}

// Equal adds an equality unless the value is empty.
func (f *Filter) Equal(column, value string) {
	if value != "" {
		f.add(condition{sql: column + " = ?", column: column, kind: equal}, value)
	}
}

// Among adds a membership unless there are no values. A single value is an equality, which keeps an index's order.
func (f *Filter) Among(column string, values []string) {
	switch len(values) {
	case 0:
	case 1:
		f.Equal(column, values[0])
	default:
		f.add(condition{sql: column + " = ANY(?::text[])", column: column, kind: among}, values)
	}
}

// SQL are all conditions, joined; "TRUE" without any.
func (f *Filter) SQL() string { return join(f.conditions) }

// Args are the arguments of SQL.
func (f *Filter) Args() []any { return f.args }

func join(conditions []condition) string {
	if len(conditions) == 0 {
		return "TRUE"
	}
	parts := make([]string, 0, len(conditions))
	for _, c := range conditions {
		parts = append(parts, c.sql)
	}
	return strings.Join(parts, " AND ")
}

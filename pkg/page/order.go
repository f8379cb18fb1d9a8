package page

import (
	"errors"
	"fmt"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
)

// Column is something a list can be ordered by.
//
// NULL counts as greater than every value, as in Postgres's own order: last when ascending, first when descending. So
// one plain index on (column, id) serves both directions.
type Column struct {
	// Field is the name that users write, such as "expires_at".
	Field string
	// SQL is the column, such as "c.not_after". It is part of the program, never of a request.
	SQL string
	// Kind is the type of the column's values.
	Kind Kind
	// Nullable columns are continued with an OR, for which Postgres cannot use the index to find the place. Large tables
	// give NullAs too.
	Nullable bool
	// NullAs is an SQL literal, greater than every value, that stands for NULL: the list is then ordered by
	// COALESCE(SQL, NullAs), and an index on (COALESCE(column, NullAs), id) finds the place. For instance
	// 'infinity'::timestamptz.
	NullAs string
}

func (c Column) expr() string {
	if c.NullAs == "" {
		return c.SQL
	}
	return "COALESCE(" + c.SQL + ", " + c.NullAs + ")"
}

// Sorting is the table of what a collection may be ordered by.
type Sorting struct {
	id      Column
	columns []Column
	normal  Order
}

// NewSorting makes the table. The id is the unique column that ends every order, so that equal keys have a fixed order;
// it may itself be ordered by when its Field is set. The normal order is used when the caller names none.
func NewSorting(id Column, normal string, columns ...Column) (*Sorting, error) {
	if id.SQL == "" || id.Kind == Null || id.Nullable || id.NullAs != "" {
		return nil, errors.New("sorting: the id column needs SQL and a kind, and is never null")
	}
	s := &Sorting{id: id}
	if id.Field != "" {
		s.columns = append(s.columns, id)
	}
	for _, c := range columns {
		if c.Field == "" || c.SQL == "" || c.Kind == Null {
			return nil, fmt.Errorf("sorting: column %q needs a field, SQL and a kind", c.Field)
		}
		s.columns = append(s.columns, c)
	}
	var err error
	if s.normal, err = s.parse(normal); err != nil {
		return nil, fmt.Errorf("sorting: normal order: %w", err)
	}
	return s, nil
}

// Parse reads order_by: a field, and perhaps "asc" or "desc". Anything else is an Invalid error on order_by that names
// the fields allowed.
func (s *Sorting) Parse(orderBy string) (Order, error) {
	if strings.TrimSpace(orderBy) == "" {
		return s.normal, nil
	}
	return s.parse(orderBy)
}

func (s *Sorting) parse(orderBy string) (Order, error) {
	words := strings.Fields(orderBy)
	if len(words) == 0 || len(words) > 2 {
		return Order{}, s.refuse()
	}
	o := Order{id: s.id}
	if len(words) == 2 {
		switch strings.ToLower(words[1]) {
		case "asc":
		case "desc":
			o.desc = true
		default:
			return Order{}, s.refuse()
		}
	}
	for _, c := range s.columns {
		if c.Field == words[0] {
			o.column = c
			return o, nil
		}
	}
	return Order{}, s.refuse()
}

func (s *Sorting) refuse() error {
	names := make([]string, 0, len(s.columns))
	for _, c := range s.columns {
		names = append(names, c.Field)
	}
	return errs.Field("order_by", "must be one of %s, with \"asc\" or \"desc\" after it or nothing", strings.Join(names, ", "))
}

// Order is one order of a collection. It comes from Sorting.
type Order struct {
	column Column
	id     Column
	desc   bool
}

// String is the canonical spelling, such as "expires_at desc".
func (o Order) String() string { return o.column.Field + " " + strings.ToLower(o.direction()) }

// Field is the name of the field that the list is ordered by.
func (o Order) Field() string { return o.column.Field }

// Column is the SQL of the column that the list is ordered by, such as "c.not_after".
func (o Order) Column() string { return o.column.SQL }

// Expression is the SQL of the first key of ORDER BY: the column, or what stands for its NULLs too.
func (o Order) Expression() string { return o.column.expr() }

// Descending tells the direction.
func (o Order) Descending() bool { return o.desc }

func (o Order) direction() string {
	if o.desc {
		return "DESC"
	}
	return "ASC"
}

func (o Order) compare() string {
	if o.desc {
		return "<"
	}
	return ">"
}

func (o Order) byIDOnly() bool { return o.column.SQL == o.id.SQL }

// SQL returns the list of ORDER BY, without the words.
func (o Order) SQL() string {
	if o.byIDOnly() {
		return o.id.SQL + " " + o.direction()
	}
	return o.column.expr() + " " + o.direction() + ", " + o.id.SQL + " " + o.direction()
}

// Cursor makes the cursor of a row from its key in this order and its id.
func (o Order) Cursor(key, id Value) Cursor {
	if o.byIDOnly() {
		return Cursor{id}
	}
	return Cursor{key, id}
}

// After returns the condition for rows after the cursor and its arguments, which are numbered from firstParam. For the
// beginning that is "TRUE". A cursor that does not fit the order is an Invalid error on page_token.
func (o Order) After(c Cursor, firstParam int) (where string, args []any, err error) {
	if len(c) == 0 {
		return "TRUE", nil, nil
	}
	if !o.fits(c) {
		return "", nil, errs.Field("page_token", "is not a token that this list gave out")
	}
	id := c[len(c)-1]
	if o.byIDOnly() {
		return fmt.Sprintf("%s %s $%d", o.id.SQL, o.compare(), firstParam), []any{id.Arg()}, nil
	}
	if c[0].Kind() == Null {
		where = o.afterNull(firstParam)
		return where, []any{id.Arg()}, nil
	}
	where = fmt.Sprintf("(%s, %s) %s ($%d, $%d)", o.column.expr(), o.id.SQL, o.compare(), firstParam, firstParam+1)
	if o.column.Nullable && o.column.NullAs == "" && !o.desc {
		where = "(" + where + " OR " + o.column.SQL + " IS NULL)"
	}
	return where, []any{c[0].Arg(), id.Arg()}, nil
}

// afterNull is After for a row whose key is NULL; the id is the one argument.
func (o Order) afterNull(param int) string {
	if o.column.NullAs != "" {
		return fmt.Sprintf("(%s, %s) %s (%s, $%d)", o.column.expr(), o.id.SQL, o.compare(), o.column.NullAs, param)
	}
	where := fmt.Sprintf("(%s IS NULL AND %s %s $%d)", o.column.SQL, o.id.SQL, o.compare(), param)
	if o.desc {
		where = "(" + where + " OR " + o.column.SQL + " IS NOT NULL)"
	}
	return where
}

func (o Order) fits(c Cursor) bool {
	if o.byIDOnly() {
		return len(c) == 1 && c[0].Kind() == o.id.Kind
	}
	if len(c) != 2 || c[1].Kind() != o.id.Kind {
		return false
	}
	nullable := o.column.Nullable || o.column.NullAs != ""
	return c[0].Kind() == o.column.Kind || c[0].Kind() == Null && nullable
}

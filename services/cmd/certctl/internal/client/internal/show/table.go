package show

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/proto"
)

// none is the cell of a field that is not set.
const none = "-"

// Column is one column of a table.
type Column struct {
	Header string
	// Path is the field to show, such as "error.message".
	Path string
	// Text is shown instead, when it is set.
	Text func(m proto.Message) string
	// Exact shows a time as it is and not counted from now.
	Exact bool
}

func (p Printer) table(items []proto.Message, columns []Column) error {
	rows := make([][]string, 0, len(items)+1)
	header := make([]string, 0, len(columns))
	for _, c := range columns {
		header = append(header, c.Header)
	}
	rows = append(rows, header)
	for _, m := range items {
		row := make([]string, 0, len(columns))
		for _, c := range columns {
			row = append(row, p.cell(m, c))
		}
		rows = append(rows, row)
	}
	return Align(p.Out, rows)
}

func (p Printer) cell(m proto.Message, c Column) string {
	var text string
	switch {
	case c.Text != nil:
		text = c.Text(m)
	case c.Exact:
		text = exact(m, c.Path)
	default:
		text = p.short(m, c.Path)
	}
	if text == "" {
		return none
	}
	return text
}

// Align writes rows with their columns under each other. Cells are cleaned.
func Align(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, 0, len(row))
		for _, cell := range row {
			cells = append(cells, Clean(cell))
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

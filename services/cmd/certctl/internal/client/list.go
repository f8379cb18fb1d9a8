package client

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// maxPage is the largest page that the server gives.
const maxPage = 1000

// listing is a list command.
type listing struct {
	method  method
	command cobra.Command
	// filters are the fields of the request that have flags.
	filters []field.Field
	// parent tells that the list is of one resource, which is an argument.
	parent bool
	// columns are those of the table, by what was asked for; nil: those of the resource.
	columns func(req proto.Message) []show.Column
}

// paging are the flags of all lists.
type paging struct {
	size  int32
	token string
	all   bool
}

func (a *app) list(l listing) *cobra.Command {
	c := &l.command
	if c.Use == "" {
		c.Use, c.Aliases = "list", []string{"ls"}
	}
	var p paging
	c.Flags().Int32Var(&p.size, "page-size", 0, "how many to show, at most 1000 (default 50)")
	c.Flags().StringVar(&p.token, "page-token", "", "where to go on, as a page before said")
	c.Flags().BoolVar(&p.all, "all", false, "show all, page by page")
	c.MarkFlagsMutuallyExclusive("all", "page-token")
	filters := field.Register(c, l.method.request().ProtoReflect().Descriptor(), a.cfg.Now, l.fields()...)
	args := cobra.NoArgs
	if l.parent {
		args = cobra.ExactArgs(1)
	}
	return a.leaf(c, args, func(ctx context.Context, s *session, args []string) error {
		req := l.method.request()
		if l.parent {
			req = l.method.named(args[0])
		}
		filters.Apply(req)
		return s.list(ctx, l, req, p)
	})
}

// fields are the filters, and the order and total where the list has them.
func (l listing) fields() []field.Field {
	fields := l.filters
	md := l.method.request().ProtoReflect().Descriptor().Fields()
	if md.ByName("order_by") != nil {
		fields = append(fields, field.Field{Path: "order_by", Help: `order, such as "name" or "create_time desc"`})
	}
	if md.ByName("include_total") != nil {
		fields = append(fields, field.Field{Path: "include_total", Flag: "total", Help: "count them all"})
	}
	return fields
}

func (s *session) list(ctx context.Context, l listing, req proto.Message, p paging) error {
	resp, err := s.pages(ctx, l.method, req, p)
	if err != nil {
		return err
	}
	rows, columns := items(resp), columnsOfList(resp)
	if l.columns != nil {
		columns = l.columns(req)
	}
	if err := s.printer().Rows(resp, rows, columns); err != nil {
		return err
	}
	s.tellMore(resp, len(rows))
	return nil
}

// pages gives one page, or all of them as one.
func (s *session) pages(ctx context.Context, m method, req proto.Message, p paging) (proto.Message, error) {
	if p.all && p.size == 0 {
		p.size = maxPage
	}
	setNumber(req, "page_size", p.size)
	setText(req, "page_token", p.token)
	whole, err := s.call(ctx, m, req)
	if err != nil {
		return nil, err
	}
	for token := text(whole, nextToken); p.all && token != ""; token = text(whole, nextToken) {
		setText(req, "page_token", token)
		next, err := s.call(ctx, m, req)
		if err != nil {
			return nil, err
		}
		// Merge appends lists, and leaves what the other has not set.
		setText(whole, nextToken, "")
		proto.Merge(whole, next)
	}
	return whole, nil
}

const nextToken = "next_page_token"

// tellMore says on standard error that what was shown is not all, and what there is in sum when that was asked.
func (s *session) tellMore(resp proto.Message, shown int) {
	token := text(resp, nextToken)
	total := resp.ProtoReflect().Descriptor().Fields().ByName("total_size")
	counted := total != nil && resp.ProtoReflect().Has(total)
	switch {
	case token != "" && counted:
		s.note("showing %d of %d; use --all or --page-size, or go on with --page-token %s", shown, resp.ProtoReflect().Get(total).Int(), token)
	case token != "":
		s.note("showing %d; use --all or --page-size, or go on with --page-token %s", shown, token)
	case counted && s.format == show.Table:
		s.note("%d in total", resp.ProtoReflect().Get(total).Int())
	case shown == 0 && s.format == show.Table:
		s.note("nothing found")
	}
}

func columnsOfList(resp proto.Message) []show.Column {
	fd := collection(resp)
	return columnsOf(resp.ProtoReflect().Get(fd).List().NewElement().Message().Interface())
}

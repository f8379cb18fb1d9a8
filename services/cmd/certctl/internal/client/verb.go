package client

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// verb is a command about one resource that is named by its id.
type verb struct {
	method  method
	command cobra.Command
	// of completes the id.
	of cobra.CompletionFunc
	// fields are the fields of the request that have flags.
	fields []field.Field
	// question is asked before, with the id in the place of %s; empty: none.
	question string
	// prepare may fill more of the request.
	prepare func(ctx context.Context, s *session, req proto.Message) error
	// follow is what --wait does with what was answered: it gives what to show in the end. Nil: there is no --wait.
	follow func(ctx context.Context, s *session, answer proto.Message) (proto.Message, error)
	// show writes what was answered; nil: as a row of its table.
	show func(s *session, id string, answer proto.Message) error
}

func (a *app) verb(v verb) *cobra.Command {
	c := &v.command
	c.ValidArgsFunction = v.of
	md := v.method.request().ProtoReflect().Descriptor()
	if md.Fields().ByName("if_revision") != nil {
		v.fields = append(v.fields, field.Field{Path: "if_revision", Help: "only if it still has this revision"})
	}
	flags := field.Register(c, md, a.cfg.Now, v.fields...)
	consent := a.consent(c, v.question)
	var w *waiting
	if v.follow != nil {
		w = waitFlags(c)
	}
	return a.leaf(c, cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		req := v.method.named(args[0])
		flags.Apply(req)
		if v.prepare != nil {
			if err := v.prepare(ctx, s, req); err != nil {
				return err
			}
		}
		if err := consent(s, args[0]); err != nil {
			return err
		}
		return v.do(ctx, s, req, w)
	})
}

func (v verb) do(ctx context.Context, s *session, req proto.Message, w *waiting) error {
	id := text(req, idField(req.ProtoReflect().Descriptor()))
	resp, err := s.call(ctx, v.method, req)
	if err != nil {
		return err
	}
	answer := payload(resp)
	if w != nil && w.wait {
		answer, err = w.follow(ctx, s, func(ctx context.Context) (proto.Message, error) { return v.follow(ctx, s, answer) })
		if err != nil {
			return err
		}
	}
	if v.show != nil {
		return v.show(s, id, answer)
	}
	return s.print(answer)
}

// described shows all fields.
func described(s *session, _ string, answer proto.Message) error { return s.describe(answer) }

// gone says that a resource was removed.
func gone(kind string) func(s *session, id string, answer proto.Message) error {
	return func(s *session, id string, answer proto.Message) error {
		switch s.format {
		case show.Table:
			_, err := fmt.Fprintf(s.out(), "%s %s deleted\n", kind, show.Clean(id))
			return err
		case show.Name:
			_, err := fmt.Fprintln(s.out(), show.Clean(id))
			return err
		default:
			return s.describe(answer)
		}
	}
}

// get makes the command that shows one resource.
func (a *app) get(m method, of cobra.CompletionFunc, kind string) *cobra.Command {
	return a.verb(verb{
		method: m, of: of, show: described,
		command: cobra.Command{Use: "get ID", Short: "Show one " + kind + " with all its fields"},
	})
}

// remove makes the command that deletes one resource.
func (a *app) remove(m method, of cobra.CompletionFunc, kind string) *cobra.Command {
	return a.verb(verb{
		method: m, of: of, show: gone(kind), question: "Delete " + kind + " %s?",
		command: cobra.Command{Use: "delete ID", Short: "Delete " + article(kind) + " that nothing uses"},
	})
}

func article(kind string) string {
	switch kind[0] {
	case 'a', 'e', 'i', 'o':
		return "an " + kind
	default:
		return "a " + kind
	}
}

// defaultTimeout bounds --wait.
const defaultTimeout = 5 * time.Minute

// watchTimeout bounds watch, which somebody may leave running.
const watchTimeout = 24 * time.Hour

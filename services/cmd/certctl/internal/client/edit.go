package client

import (
	"context"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

// editor makes the create and the update command of a resource.
type editor struct {
	kind           string
	create, update method
	get            method
	of             cobra.CompletionFunc
	// fields are the fields of the resource that have flags.
	fields []field.Field
	// createOnly are those that only create has.
	createOnly []field.Field
	// configured tells that the resource has a config, for --set.
	configured bool
	// follow is what create --wait does; nil: there is no --wait.
	follow func(ctx context.Context, s *session, answer proto.Message) (proto.Message, error)
	// show writes what create was answered; nil: as a row of its table.
	show    func(s *session, id string, answer proto.Message) error
	example string
}

// fileFlag names the file of a whole resource.
const fileFlag = "filename"

func fileFlags(c *cobra.Command) *string {
	path := c.Flags().StringP(fileFlag, "f", "", "file with the resource in JSON or YAML; - is standard input; flags win over it")
	complete(c, fileFlag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return []cobra.Completion{"json", "yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
	})
	return path
}

func (a *app) createCommand(e editor) *cobra.Command {
	c := &cobra.Command{Use: "create", Short: "Create " + article(e.kind), Example: e.example}
	fd := resourceField(e.create.request().ProtoReflect().Descriptor())
	own := []field.Field{{Path: "id", Help: "its id, if it is to have one of yours: lower case, digits and -, 3 to 63"}, {Path: "name", Help: "its name"}}
	flags := field.Register(c, fd.Message(), a.cfg.Now, slices.Concat(own, e.createOnly, e.fields)...)
	file, entries := fileFlags(c), e.entries(c)
	var w *waiting
	if e.follow != nil {
		w = waitFlags(c)
	}
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		req := e.create.request()
		resource := req.ProtoReflect().Mutable(fd).Message().Interface()
		if _, err := s.readFile(*file, resource); err != nil {
			return err
		}
		flags.Apply(resource)
		if _, err := entries.apply(s, resource); err != nil {
			return err
		}
		return verb{method: e.create, follow: e.follow, show: e.show}.do(ctx, s, req, w)
	})
}

func (a *app) updateCommand(e editor) *cobra.Command {
	c := &cobra.Command{
		Use: "update ID", Short: "Change the fields that are given", ValidArgsFunction: e.of,
		Long: "Change the fields that are given, by flags or in a file. A list or a map replaces the one there was; what --set, --set-json\n" +
			"and --set-file name is changed within the configuration there is, or within that of --config.",
	}
	md := e.update.request().ProtoReflect().Descriptor()
	fd := resourceField(md)
	flags := field.Register(c, fd.Message(), a.cfg.Now, slices.Concat([]field.Field{{Path: "name", Help: "its name"}}, e.fields)...)
	conditions := field.Register(c, md, a.cfg.Now, field.Field{Path: "if_revision", Help: "only if it still has this revision"})
	file, entries := fileFlags(c), e.entries(c)
	return a.leaf(c, cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		u := update{editor: e, id: args[0], file: *file, flags: flags, entries: entries}
		req := e.update.request()
		conditions.Apply(req)
		if err := u.fill(ctx, s, req, fd); err != nil {
			return err
		}
		return verb{method: e.update}.do(ctx, s, req, nil)
	})
}

// entries registers --set and the like, for resources with a config.
func (e editor) entries(c *cobra.Command) *entries {
	if !e.configured {
		return nil
	}
	return entryFlags(c)
}

// update is one run of an update command.
type update struct {
	editor
	id, file string
	flags    *field.Set
	entries  *entries
}

// fill makes the request. A configuration is written as one: when a part of it changes, the rest is taken from what the server
// has, and the write is for that revision only.
func (u update) fill(ctx context.Context, s *session, req proto.Message, fd protoreflect.FieldDescriptor) error {
	resource := req.ProtoReflect().Mutable(fd).Message().Interface()
	paths, err := s.readFile(u.file, resource)
	if err != nil {
		return err
	}
	if own := text(resource, "id"); own != "" && own != u.id {
		return usagef("%s is about %s, not about %s", u.file, own, u.id)
	}
	if u.entries.given() && !u.entries.whole() && !slices.Contains(paths, "config") {
		if err := u.base(ctx, s, req, resource); err != nil {
			return err
		}
	}
	paths = append(paths, u.flags.Apply(resource)...)
	configured, err := u.entries.apply(s, resource)
	if err != nil {
		return err
	}
	if configured {
		paths = append(paths, "config")
	}
	setText(resource, "id", u.id)
	return u.mask(req, paths)
}

// base takes the configuration that the server has.
func (u update) base(ctx context.Context, s *session, req, resource proto.Message) error {
	resp, err := s.call(ctx, u.get, u.get.named(u.id))
	if err != nil {
		return err
	}
	current := payload(resp).ProtoReflect()
	fields := current.Descriptor().Fields()
	if config := fields.ByName("config"); current.Has(config) {
		resource.ProtoReflect().Set(config, current.Get(config))
	}
	revision := req.ProtoReflect().Descriptor().Fields().ByName("if_revision")
	if !req.ProtoReflect().Has(revision) {
		req.ProtoReflect().Set(revision, current.Get(fields.ByName("revision")))
	}
	return nil
}

func (u update) mask(req proto.Message, paths []string) error {
	paths = slices.DeleteFunc(paths, func(p string) bool { return p == "id" })
	if len(paths) == 0 {
		return usage("nothing to change: give flags or a file with -f")
	}
	slices.Sort(paths)
	mask := &fieldmaskpb.FieldMask{Paths: slices.Compact(paths)}
	fd := req.ProtoReflect().Descriptor().Fields().ByName("update_mask")
	req.ProtoReflect().Set(fd, protoreflect.ValueOfMessage(mask.ProtoReflect()))
	return nil
}

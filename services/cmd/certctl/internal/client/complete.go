package client

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

const (
	// completeTimeout bounds the wait of somebody who pressed a key.
	completeTimeout = 2 * time.Second
	// completeSize is how many ids are proposed.
	completeSize = 200
)

// ids proposes the ids of a collection, each with what it is. As the first argument only: no command takes two.
func (a *app) ids(list method, about string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.propose(c, list, about, toComplete)
	}
}

// flagIDs is ids for a flag.
func (a *app) flagIDs(list method, about string) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.propose(c, list, about, toComplete)
	}
}

func (a *app) propose(c *cobra.Command, list method, about, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	s, err := a.open(c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(c.Context(), completeTimeout)
	defer cancel()
	resp, err := s.pages(ctx, list, list.request(), paging{size: completeSize})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []cobra.Completion
	for _, m := range items(resp) {
		if id := show.ID(m); strings.HasPrefix(id, toComplete) {
			out = append(out, cobra.CompletionWithDesc(id, show.Text(m, about)))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

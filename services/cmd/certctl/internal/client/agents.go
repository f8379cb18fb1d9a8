package client

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

func listAgents() method {
	return bind(inventoryv1.NewAgentRegistryServiceClient, inventoryv1.AgentRegistryServiceClient.ListAgents)
}

func listJoinTokens() method {
	return bind(inventoryv1.NewAgentRegistryServiceClient, inventoryv1.AgentRegistryServiceClient.ListJoinTokens)
}

func (a *app) agents() *cobra.Command {
	client, ids := inventoryv1.NewAgentRegistryServiceClient, a.ids(listAgents(), "name")
	return group("agents", "Agents: certctl on the hosts of servers", []string{"agent"},
		a.list(listing{
			method: listAgents(), command: cobra.Command{Short: "List agents"},
			filters: []field.Field{
				{Path: "status", Help: "only of these states"},
				{Path: "name", Help: "only with this in the name"},
				{Path: "label", Help: "only with these labels"},
			},
		}),
		a.get(bind(client, inventoryv1.AgentRegistryServiceClient.GetAgent), ids, "agent"),
		a.joinToken(),
		a.list(listing{method: listJoinTokens(), command: cobra.Command{Use: "join-tokens", Short: "List join tokens, without their secrets"}}),
		a.verb(verb{
			method: bind(client, inventoryv1.AgentRegistryServiceClient.DeleteJoinToken), of: a.ids(listJoinTokens(), "created_by"),
			command:  cobra.Command{Use: "delete-join-token ID", Short: "End a join token"},
			question: "End join token %s?", show: gone("join token"),
		}),
		a.verb(verb{
			method: bind(client, inventoryv1.AgentRegistryServiceClient.RetireAgent), of: ids,
			command:  cobra.Command{Use: "retire ID", Short: "End an agent for good"},
			question: "Retire %s? Its credential ends, and it cannot come back.",
			fields:   []field.Field{{Path: "force", Help: "although targets are on it"}},
		}),
		a.verb(verb{
			method: bind(client, inventoryv1.AgentRegistryServiceClient.AllowReenrollment), of: ids,
			command: cobra.Command{
				Use: "allow-reenrollment ID", Short: "Let a host that lost its credential enrol again under its name, once, within the hour",
			},
		}))
}

// joinToken makes the token, and says what to do with it.
func (a *app) joinToken() *cobra.Command {
	create := bind(inventoryv1.NewAgentRegistryServiceClient, inventoryv1.AgentRegistryServiceClient.CreateJoinToken)
	c := &cobra.Command{Use: "join-token", Short: "Make a token that agents enrol with; it is shown once"}
	flags := field.Register(c, create.request().ProtoReflect().Descriptor(), a.cfg.Now,
		field.Field{Path: "max_uses", Flag: "uses", Help: "how many agents may enrol with it (default 1)"},
		field.Field{Path: "ttl", Help: "how long it is good for, such as 1h or 7d (default 1h)"},
		field.Field{Path: "allow_reenrollment", Help: "it may also take over the name of an agent that exists"})
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		req := create.request()
		flags.Apply(req)
		return verb{method: create, show: enrolment}.do(ctx, s, req, nil)
	})
}

func enrolment(s *session, _ string, answer proto.Message) error {
	if err := s.describe(answer); err != nil {
		return err
	}
	t, ok := answer.(*inventoryv1.JoinToken)
	if !ok || s.format != show.Table {
		return nil
	}
	line := fmt.Sprintf("on the host: certctl-agent run --server %s --join-token %s", s.access.url, t.GetToken())
	if len(s.access.ca) > 0 {
		line += " --server-ca ca.crt, with a copy of " + s.access.caFrom
	}
	s.note("%s", line)
	return nil
}

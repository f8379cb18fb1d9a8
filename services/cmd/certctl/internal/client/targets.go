package client

import (
	"github.com/spf13/cobra"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

func listTargets() method {
	return bind(inventoryv1.NewTargetServiceClient, inventoryv1.TargetServiceClient.ListTargets)
}

func listDeployments() method {
	return bind(inventoryv1.NewDeploymentServiceClient, inventoryv1.DeploymentServiceClient.ListDeployments)
}

func (a *app) targets() *cobra.Command {
	client, ids := inventoryv1.NewTargetServiceClient, a.ids(listTargets(), "name")
	get := bind(client, inventoryv1.TargetServiceClient.GetTarget)
	agent := a.flagIDs(listAgents(), "name")
	types := cobra.FixedCompletions([]cobra.Completion{"file", "nginx"}, cobra.ShellCompDirectiveNoFileComp)
	e := editor{
		kind: "target", of: ids, get: get, configured: true,
		create: bind(client, inventoryv1.TargetServiceClient.CreateTarget),
		update: bind(client, inventoryv1.TargetServiceClient.UpdateTarget),
		createOnly: []field.Field{
			{Path: "agent_id", Flag: "agent", Help: "agent on the host of the server", Complete: agent},
			{Path: "type", Help: "kind of server: file or nginx", Complete: types},
		},
		fields: []field.Field{
			{Path: "endpoint.address", Flag: "endpoint", Help: "host:port where clients meet the certificate, which is verified"},
			{Path: "endpoint.server_name", Flag: "server-name", Help: "server name to ask for (SNI); default the first DNS name"},
			{Path: "endpoint.starttls", Flag: "starttls", Help: "protocol to speak before TLS"},
		},
		example: "  certctl targets create --name web --agent agent-1 --type nginx --endpoint 127.0.0.1:8444 --server-name www.example.com \\\n" +
			"    --set fullchain_path=/etc/nginx/tls/web.pem --set key_path=/etc/nginx/tls/web.key",
	}
	return group("targets", "Targets: servers that certificates go to", []string{"target"},
		a.list(listing{
			method: listTargets(), command: cobra.Command{Short: "List targets"},
			filters: []field.Field{
				{Path: "agent_id", Flag: "agent", Help: "only of this agent", Complete: agent},
				{Path: "type", Help: "only of this type", Complete: types},
				{Path: "name", Help: "only with this in the name"},
			},
		}),
		a.get(get, ids, "target"), a.createCommand(e), a.updateCommand(e),
		a.remove(bind(client, inventoryv1.TargetServiceClient.DeleteTarget), ids, "target"))
}

func (a *app) deployments() *cobra.Command {
	client := inventoryv1.NewDeploymentServiceClient
	return group("deployments", "Deployments: which version is where", []string{"deployment"},
		a.list(listing{
			method: listDeployments(), command: cobra.Command{Short: "List deployments"},
			filters: []field.Field{
				{Path: "status", Help: "only of these states"},
				{Path: "certificate_id", Flag: "certificate", Help: "only of this certificate", Complete: a.flagIDs(listCertificates(), "name")},
				{Path: "target_id", Flag: "target", Help: "only on this target", Complete: a.flagIDs(listTargets(), "name")},
				{Path: "agent_id", Flag: "agent", Help: "only of this agent", Complete: a.flagIDs(listAgents(), "name")},
			},
		}),
		a.get(bind(client, inventoryv1.DeploymentServiceClient.GetDeployment), a.ids(listDeployments(), "status"), "deployment"))
}

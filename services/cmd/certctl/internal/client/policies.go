package client

import (
	"github.com/spf13/cobra"

	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

func listPolicies() method {
	return bind(schedulerv1.NewPolicyServiceClient, schedulerv1.PolicyServiceClient.ListPolicies)
}

func (a *app) policies() *cobra.Command {
	client, ids := schedulerv1.NewPolicyServiceClient, a.ids(listPolicies(), "name")
	get := bind(client, schedulerv1.PolicyServiceClient.GetPolicy)
	e := editor{
		kind: "policy", of: ids, get: get,
		create: bind(client, schedulerv1.PolicyServiceClient.CreatePolicy),
		update: bind(client, schedulerv1.PolicyServiceClient.UpdatePolicy),
		fields: []field.Field{
			{Path: "renew_at_fraction", Flag: "renew-at", Help: "renew when this part of the lifetime has passed, such as 0.67"},
			{Path: "renew_before", Help: "or: renew this long before the end, such as 30d"},
			{Path: "automatic", Help: "whether renewals start by themselves"},
			{Path: "max_attempts", Help: "tries of one job, 1 to 100"},
			{Path: "alert_days", Help: "days before the end at which to raise alerts"},
		},
		example: "  certctl policies create --id pol-early --name early --renew-before 30d\n" +
			"  certctl policies create -f policy.yaml   # freeze windows are given in a file",
	}
	return group("policies", "Policies: when certificates are renewed", []string{"policy"},
		a.list(listing{method: listPolicies(), command: cobra.Command{Short: "List policies"}}),
		a.get(get, ids, "policy"), a.createCommand(e), a.updateCommand(e),
		a.remove(bind(client, schedulerv1.PolicyServiceClient.DeletePolicy), ids, "policy"))
}

package client

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

func (a *app) stats() *cobra.Command {
	c := &cobra.Command{Use: "stats", Short: "Count certificates, agents, deployments and jobs"}
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		resp, err := inventoryv1.NewStatsServiceClient(s.conn).GetSummary(ctx, &inventoryv1.GetSummaryRequest{})
		if err != nil {
			return err
		}
		if s.format != show.Table {
			return s.describe(resp)
		}
		return show.Align(s.out(), counts(resp))
	})
}

func counts(r *inventoryv1.GetSummaryResponse) [][]string {
	rows := [][]string{{"WHAT", "STATUS", "COUNT"}}
	for _, g := range []struct {
		name   string
		counts map[string]int32
	}{{"certificates", r.GetCertificates()}, {"agents", r.GetAgents()}, {"deployments", r.GetDeployments()}, {"jobs", r.GetJobs()}} {
		for _, status := range slices.Sorted(maps.Keys(g.counts)) {
			rows = append(rows, []string{g.name, status, number(g.counts[status])})
		}
	}
	return append(rows,
		[]string{"certificates", "end within 7d", number(r.GetCertificatesExpiring_7D())},
		[]string{"certificates", "end within 30d", number(r.GetCertificatesExpiring_30D())},
		[]string{"rows", "stuck", number(r.GetStuck())})
}

func number(n int32) string { return strconv.Itoa(int(n)) }

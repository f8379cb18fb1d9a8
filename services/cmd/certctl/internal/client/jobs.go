package client

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

func listJobs() method {
	return bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.ListJobs)
}

func (a *app) jobs() *cobra.Command {
	client, ids := schedulerv1.NewJobServiceClient, a.ids(listJobs(), "type")
	comment := []field.Field{{Path: "comment", Help: "why"}}
	return group("jobs", "Jobs: the work on certificates", []string{"job"},
		a.list(listing{
			method: listJobs(), command: cobra.Command{Short: "List jobs"},
			filters: []field.Field{
				{Path: "status", Help: "only of these states"},
				{Path: "type", Help: "only of these types"},
				{Path: "certificate_id", Flag: "certificate", Help: "only of this certificate", Complete: a.flagIDs(listCertificates(), "name")},
				{Path: "agent_id", Flag: "agent", Help: "only those of this agent", Complete: a.flagIDs(listAgents(), "name")},
				{Path: "target_id", Flag: "target", Help: "only for this target", Complete: a.flagIDs(listTargets(), "name")},
			},
		}),
		a.get(bind(client, schedulerv1.JobServiceClient.GetJob), ids, "job"),
		a.watch(ids),
		a.verb(verb{
			method: bind(client, schedulerv1.JobServiceClient.CancelJob), of: ids, question: "Cancel job %s?",
			command: cobra.Command{Use: "cancel ID", Short: "End an open job"},
		}),
		a.verb(verb{
			method: bind(client, schedulerv1.JobServiceClient.RetryJob), of: ids, follow: followJob,
			command: cobra.Command{Use: "retry ID", Short: "Start the work of a failed job again"},
		}),
		a.verb(verb{
			method: bind(client, schedulerv1.JobServiceClient.ApproveJob), of: ids, follow: followJob, fields: comment,
			command: cobra.Command{Use: "approve ID", Short: "Let a job run that somebody else asked for"},
		}),
		a.verb(verb{
			method: bind(client, schedulerv1.JobServiceClient.RejectJob), of: ids, fields: comment, question: "Reject job %s?",
			command: cobra.Command{Use: "reject ID", Short: "End a job that waits for approval"},
		}))
}

// watch follows a job, and tells each change on standard error.
func (a *app) watch(ids cobra.CompletionFunc) *cobra.Command {
	c := &cobra.Command{
		Use: "watch ID", Short: "Follow a job to its end, and fail if it fails", ValidArgsFunction: ids,
		Long: "Follow a job to its end: each change is told on standard error, and the job is shown when it has ended.",
	}
	w := timeoutFlag(c, watchTimeout)
	return a.leaf(c, cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		job, err := w.follow(ctx, s, func(ctx context.Context) (proto.Message, error) {
			job, err := s.waitJob(ctx, args[0], goOn)
			if job == nil {
				return nil, err
			}
			return job, err
		})
		if ended, ok := job.(*schedulerv1.Job); ok && ended != nil {
			if printed := s.print(ended); printed != nil {
				return printed
			}
		}
		return err
	})
}

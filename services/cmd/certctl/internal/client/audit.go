package client

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// verifyTimeout bounds the verification of a long record.
const verifyTimeout = 30 * time.Minute

func listEvents() method {
	return bind(auditv1.NewAuditServiceClient, auditv1.AuditServiceClient.ListEvents)
}

func (a *app) audit() *cobra.Command {
	client := auditv1.NewAuditServiceClient
	return group("audit", "Audit: the record of what happened", nil,
		a.list(listing{
			method: listEvents(), command: cobra.Command{Short: "List events, newest first"},
			filters: []field.Field{
				{Path: "actor_id", Flag: "actor", Help: "only by this user, agent or service"},
				{Path: "actor_type", Help: "only by actors of this type"},
				{Path: "action", Help: `only this action, or those with a prefix: "certificate.*"`},
				{Path: "resource_type", Help: "only about resources of this type"},
				{Path: "resource_id", Flag: "resource", Help: "only about this resource"},
				{Path: "outcome", Help: "only with this outcome"},
				{Path: "request_id", Flag: "request", Help: "only of this request"},
				{Path: "after", Help: "only those after, such as -1h"},
				{Path: "before", Help: "only those before"},
			},
		}),
		a.get(bind(client, auditv1.AuditServiceClient.GetEvent), a.ids(listEvents(), "action"), "event"),
		a.checkpoint(), a.verify())
}

func (a *app) checkpoint() *cobra.Command {
	c := &cobra.Command{Use: "checkpoint", Short: "Show the newest anchored head of the chain"}
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		resp, err := auditv1.NewAuditServiceClient(s.conn).GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
		if err != nil {
			return err
		}
		return s.describe(resp.GetCheckpoint())
	})
}

func (a *app) verify() *cobra.Command {
	c := &cobra.Command{Use: "verify", Short: "Recompute the chain, and name the first event that was changed"}
	req := &auditv1.VerifyEventsRequest{}
	c.Flags().Int64Var(&req.FirstSequence, "first", 0, "first sequence to check (default the start)")
	c.Flags().Int64Var(&req.LastSequence, "last", 0, "last sequence to check (default the end)")
	timeout := timeoutFlag(c, verifyTimeout)
	return a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		s.limit = timeout.timeout
		resp, err := auditv1.NewAuditServiceClient(s.conn).VerifyEvents(ctx, req)
		if err != nil {
			return err
		}
		return s.verified(resp)
	})
}

func (s *session) verified(resp *auditv1.VerifyEventsResponse) error {
	if s.format != show.Table {
		if err := s.describe(resp); err != nil {
			return err
		}
	}
	if !resp.GetValid() {
		return notIntact(resp.GetFirstInvalidEvent())
	}
	if s.format != show.Table {
		return nil
	}
	_, err := fmt.Fprintf(s.out(), "the record is intact: %d events checked, head %d %s\n",
		resp.GetEventsChecked(), resp.GetHead().GetSequence(), show.Clean(resp.GetHead().GetHash()))
	return err
}

func notIntact(e *auditv1.InvalidEvent) error {
	event := fmt.Sprintf("event %d", e.GetSequence())
	if e.GetId() != "" { // an event that is missing has no id
		event += " (" + e.GetId() + ")"
	}
	hint := "somebody changed the audit log's database: keep a copy of it as it is, then find out who had access"
	switch e.GetReason() {
	case "HEAD_MISMATCH", "CHECKPOINT_MISMATCH": // these two carry a MAC
		hint = "the internal secret is not the one that the log was written with, or " + hint
	case "SECRET_UNKNOWN": // the message has the way out
		hint = "this is no proof that somebody changed the log, nor that nobody did"
	}
	return &Failure{
		Message: fmt.Sprintf("the record is not intact: %s: %s (%s)", event, e.GetMessage(), e.GetReason()), Hint: hint, Code: exitError,
	}
}

package client

import (
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// explanation is what is below the summary.
func explanation(e *schedulerv1.ExplainCertificateResponse, s *session) []string {
	var lines []string
	add := func(label, format string, a ...any) {
		lines = append(lines, fmt.Sprintf("%-12s", label)+fmt.Sprintf(format, a...))
	}
	add("status", "%s", e.GetStatus())
	if b := e.GetBlocker(); b != nil {
		add("blocked", "%s (%s)", b.GetMessage(), b.GetReason())
		add("", "who can help: %s", b.GetOwner())
	}
	if n := e.GetNext(); n != nil {
		add("next", "%s%s", n.GetAction(), s.when(n.GetTime()))
	}
	if t := e.GetRenewTime(); t != nil {
		add("renewal", "%s", s.when(t)[2:])
	}
	if j := e.GetOpenJob(); j != nil {
		add("open", "%s", jobState(j))
		if j.GetStatus() == schedulerv1.Job_AWAITING_CA && j.GetOrderId() != "" {
			add("", "what the CA says: certctl orders get %s", j.GetOrderId())
		}
	}
	if j := e.GetLastJob(); j != nil {
		add("last", "%s", jobState(j))
	}
	for _, d := range e.GetDecisions() {
		add("decided", "%s: %s", d.GetSubject(), d.GetOutcome())
		add("", "because of %s", d.GetRule())
	}
	return lines
}

// when is a time with its distance, as the end of a sentence; empty when there is none.
func (s *session) when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	at := t.AsTime().UTC()
	return fmt.Sprintf(", %s (%s)", show.Relative(at, s.cfg.Now()), at.Format("2006-01-02T15:04:05Z"))
}

package client

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// columnsOf gives the columns of a message's table; nil for one that is shown field by field.
func columnsOf(m proto.Message) []show.Column {
	switch m.(type) {
	case *inventoryv1.Certificate:
		return columns("ID id", "NAME name", "DNS dns_names", "STATUS status", "VERSION current_version", "EXPIRES not_after", "ISSUER issuer_id")
	case *inventoryv1.CertificateVersion:
		return columns("VERSION version", "SERIAL serial_number", "KEY key_algorithm", "AGENT agent_id", "CREATED create_time", "EXPIRES not_after", "REVOKED revocation_reason",
			"AT THE CA revocation_state", "WHY NOT revocation_error")
	case *inventoryv1.Agent:
		return columns("ID id", "NAME name", "STATUS status", "LAST SEEN last_seen_time", "ADDRESS ip_address", "VERSION version", "TARGETS capabilities")
	case *inventoryv1.JoinToken:
		return append(columns("ID id"), append([]show.Column{{Header: "USES", Text: uses}}, columns("EXPIRES expire_time", "CREATED create_time", "BY created_by")...)...)
	case *inventoryv1.Target:
		return columns("ID id", "NAME name", "TYPE type", "AGENT agent_id", "ENDPOINT endpoint.address")
	case *inventoryv1.Deployment:
		return columns("ID id", "CERTIFICATE certificate_id", "TARGET target_id", "STATUS status", "DESIRED desired_version", "DEPLOYED deployed_version", "SERVED served_version", "VERIFIED verify_time", "ERROR error.reason")
	case *issuancev1.Issuer:
		return append(columns("ID id", "NAME name", "TYPE type"), append([]show.Column{{Header: "ENABLED", Text: enabled}}, columns("STATUS status", "TESTED last_test_time")...)...)
	case *issuancev1.Profile:
		return append(columns("ID id", "NAME name", "VALIDITY max_validity", "NAMES allowed_san_patterns"), show.Column{Header: "APPROVAL", Text: approval})
	case *issuancev1.Order:
		return orderColumns()
	case *issuancev1.OrderPoll:
		return pollColumns()
	case *schedulerv1.Policy:
		return append(columns("ID id", "NAME name"), append([]show.Column{{Header: "RENEWS", Text: renews}, {Header: "AUTOMATIC", Text: automatic}}, columns("ATTEMPTS max_attempts")...)...)
	case *schedulerv1.Job:
		return columns("ID id", "TYPE type", "STATUS status", "CERTIFICATE certificate_id", "ATTEMPT attempt", "BY requested_by", "CREATED create_time", "ERROR error.reason")
	case *auditv1.Event:
		return []show.Column{
			{Header: "SEQUENCE", Path: "sequence"}, {Header: "TIME", Path: "time", Exact: true}, {Header: "ACTOR", Path: "actor.id"},
			{Header: "ACTION", Path: "action"}, {Header: "RESOURCE", Path: "resource.id"}, {Header: "OUTCOME", Path: "outcome"}, {Header: "ID", Path: "id"},
		}
	default:
		return nil
	}
}

// columns makes columns of "HEADER path".
func columns(texts ...string) []show.Column {
	out := make([]show.Column, 0, len(texts))
	for _, t := range texts {
		i := len(t) - 1
		for t[i] != ' ' {
			i--
		}
		out = append(out, show.Column{Header: t[:i], Path: t[i+1:]})
	}
	return out
}

func uses(m proto.Message) string {
	t, ok := m.(*inventoryv1.JoinToken)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d of %d", t.GetUses(), t.GetMaxUses())
}

func enabled(m proto.Message) string {
	i, ok := m.(*issuancev1.Issuer)
	return yesNo(ok && i.GetEnabled())
}

func approval(m proto.Message) string {
	p, ok := m.(*issuancev1.Profile)
	return yesNo(ok && p.GetRequiresApproval())
}

func automatic(m proto.Message) string {
	p, ok := m.(*schedulerv1.Policy)
	return yesNo(ok && p.GetAutomatic())
}

func renews(m proto.Message) string {
	p, ok := m.(*schedulerv1.Policy)
	switch {
	case !ok:
		return ""
	case p.GetRenewBefore() != nil:
		return show.Duration(p.GetRenewBefore().AsDuration()) + " before the end"
	case p.RenewAtFraction != nil:
		return fmt.Sprintf("at %.0f %%", 100*p.GetRenewAtFraction())
	default:
		return "at 2/3"
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

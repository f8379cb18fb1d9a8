package core

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/outbox"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// The services that are told of facts.
const (
	toInventory        = "inventory"
	toRenewalScheduler = "renewalscheduler"
	toAsyncPoller      = "asyncpoller"
)

func orderEvent(o store.Order, destination, kind string, payload proto.Message) outbox.Event {
	return outbox.Event{Type: kind, ResourceType: "order", ResourceID: o.ID, Destination: destination, Payload: payload}
}

func orderChanged(o store.Order) outbox.Event {
	return orderEvent(o, toRenewalScheduler, "order.changed", &issuancev1.OrderChanged{Order: OrderProto(o)})
}

func orderPending(o store.Order, first time.Time) outbox.Event {
	return orderEvent(o, toAsyncPoller, "order.pending", &asyncpollerv1.CreatePollRequest{
		OrderId: o.ID, IssuerId: o.IssuerID, CaReference: string(o.CAReference),
		DueTime: timestamppb.New(first), DeadlineTime: timestamppb.New(o.DeadlineTime),
	})
}

// certificateIssued is about the certificate, so that inventory gets the versions of one in their order.
func certificateIssued(o store.Order, leaf, chain []byte) outbox.Event {
	return outbox.Event{
		Type: "certificate.issued", ResourceType: "certificate", ResourceID: o.CertificateID, Destination: toInventory,
		Payload: &issuancev1.CertificateIssued{
			OrderId: o.ID, CertificateId: o.CertificateID, AgentId: o.AgentID, JobId: o.JobID,
			CertificatePem: string(leaf), ChainPem: string(chain), Lifetime: durationpb.New(o.Lifetime),
		},
	}
}

// auditOrder is the audit event of what an order has become.
func auditOrder(ctx context.Context, o store.Order, action string, more map[string]any) outbox.Event {
	data := map[string]any{
		"certificate_id": o.CertificateID, "issuer_id": o.IssuerID, "profile_id": o.ProfileID, "status": o.Status, "csr_sha256": o.CSRSHA256,
	}
	for key, value := range map[string]string{
		"job_id": o.JobID, "agent_id": o.AgentID, "serial_number": o.SerialNumber, "error_reason": o.ErrorReason, "error": o.ErrorMessage,
	} {
		if value != "" {
			data[key] = value
		}
	}
	for key, value := range more {
		data[key] = value
	}
	outcome := auditlog.Success
	if o.Status == Failed || o.Status == Rejected || o.Status == Unknown {
		outcome = auditlog.Failure
	}
	return auditlog.Event(ctx, auditlog.Entry{Action: action, ResourceType: "order", ResourceID: o.ID, Outcome: outcome, Data: data})
}

func actionOf(status string) string {
	if status == Created {
		return "order.postponed"
	}
	return "order." + strings.ToLower(status)
}

// OrderProto gives an order as the API shows it.
func OrderProto(o store.Order) *issuancev1.Order {
	out := &issuancev1.Order{
		Id: o.ID, CertificateId: o.CertificateID, IssuerId: o.IssuerID, JobId: o.JobID, AgentId: o.AgentID,
		Status: issuancev1.Order_Status(issuancev1.Order_Status_value[o.Status]), CaReference: referenceText(o.CAReference),
		CsrSha256: o.CSRSHA256, PollAttempts: o.PollAttempts, SerialNumber: o.SerialNumber, Revision: o.Revision,
		NextPollTime: Timestamp(o.NextPollTime), DeadlineTime: Timestamp(o.DeadlineTime), CreateTime: Timestamp(o.CreateTime),
		SubmitTime: Timestamp(o.SubmitTime), IssueTime: Timestamp(o.IssueTime), Account: o.Account, PreviousOrderId: o.PreviousOrderID,
		Names: &typev1.Names{
			CommonName: o.Names.CommonName, DnsNames: o.Names.DNSNames, IpAddresses: o.Names.IPAddresses,
			EmailAddresses: o.Names.EmailAddresses, Uris: o.Names.URIs,
		},
	}
	if o.ErrorReason != "" {
		out.LastError = &typev1.Problem{Reason: o.ErrorReason, Message: o.ErrorMessage}
	}
	return out
}

// Age is how long an order took, or has taken so far.
func (c *Core) Age(o store.Order) *durationpb.Duration {
	end := o.EndTime
	if end.IsZero() {
		end = c.now()
	}
	return durationpb.New(max(end.Sub(o.CreateTime), 0).Truncate(time.Second))
}

// OrphanProto gives an orphan as the API shows it: an order of nobody, with why as its problem.
func (c *Core) OrphanProto(o store.Orphan) *issuancev1.Order {
	began := o.PlacedTime
	if began.IsZero() {
		began = o.CreateTime
	}
	out := &issuancev1.Order{
		Id: o.ID, IssuerId: o.IssuerID, Orphan: true, Status: issuancev1.Order_Status(issuancev1.Order_Status_value[o.CAState]),
		CaReference: referenceText(o.CAReference), SerialNumber: o.SerialNumber, Account: o.Account, Revision: o.Revision,
		CreateTime: Timestamp(o.CreateTime), SubmitTime: Timestamp(o.PlacedTime), Age: durationpb.New(max(c.now().Sub(began), 0).Truncate(time.Second)),
		Names:     &typev1.Names{CommonName: o.CommonName, DnsNames: o.DNSNames},
		LastError: &typev1.Problem{Reason: o.Reason, Message: o.Message},
	}
	if o.Status != orphanOpen {
		out.Orphan = false
		out.LastError = &typev1.Problem{Reason: "ORPHAN_" + o.Status, Message: "somebody has decided about this orphan: it is " + o.Status}
	}
	return out
}

func referenceText(r json.RawMessage) string {
	if len(r) == 0 || string(r) == "{}" {
		return ""
	}
	return string(r)
}

// Timestamp gives the zero time as unset.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

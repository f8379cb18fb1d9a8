package api

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func problem(p store.Problem) *typev1.Problem {
	if p.Reason == "" {
		return nil
	}
	return &typev1.Problem{Reason: p.Reason, Message: p.Message}
}

// jobMessage shows a job with its keys.
func jobMessage(j *store.Job, keys []*store.Key) *renewalschedulerv1.Job {
	m := &renewalschedulerv1.Job{
		Id:            j.ID,
		Type:          renewalschedulerv1.Job_Type(renewalschedulerv1.Job_Type_value[string(j.Type)]),
		Status:        renewalschedulerv1.Job_Status(renewalschedulerv1.Job_Status_value[string(j.State)]),
		CertificateId: j.CertificateID,
		TargetId:      j.TargetID,
		Attempt:       int32(j.Attempt),
		MaxAttempts:   int32(j.MaxAttempts),
		DeadlineTime:  timestamp(j.DeadlineTime),
		Error:         problem(j.Error),
		RequestedBy:   j.RequestedBy,
		ApprovedBy:    j.ApprovedBy,
		CreateTime:    timestamp(j.CreateTime),
		StartTime:     timestamp(j.StartTime),
		EndTime:       timestamp(j.EndTime),
		Revision:      j.Revision,
	}
	if j.State == store.Pending {
		m.NextAttemptTime = timestamp(j.DueTime)
	}
	waiting := ""
	for _, k := range keys {
		m.Keys = append(m.Keys, keyMessage(k))
		// Ids of orders are UUIDv7: the greatest is the newest.
		m.OrderId = max(m.OrderId, k.OrderID)
		if k.State != store.KeyDone {
			m.AgentId, waiting = k.AgentID, waiting+"x"
		}
	}
	if len(keys) == 1 {
		m.AgentId = keys[0].AgentID
	} else if len(waiting) != 1 {
		m.AgentId = ""
	}
	return m
}

func keyMessage(k *store.Key) *renewalschedulerv1.JobKey {
	return &renewalschedulerv1.JobKey{
		AgentId: k.AgentID, Status: renewalschedulerv1.JobKey_Status(renewalschedulerv1.JobKey_Status_value[string(k.State)]),
		OrderId: k.OrderID, Version: k.Version, Error: problem(k.Error),
	}
}

func policyMessage(p *store.Policy) *renewalschedulerv1.Policy {
	m := &renewalschedulerv1.Policy{
		Id: p.ID, Name: p.Name, Automatic: &p.Automatic, MaxAttempts: int32(p.MaxAttempts),
		AlertDays: p.AlertDays, CreateTime: timestamp(p.CreateTime), UpdateTime: timestamp(p.UpdateTime), Revision: p.Revision,
	}
	if p.RenewAtFraction != 0 {
		m.RenewAtFraction = &p.RenewAtFraction
	}
	if p.RenewBefore != 0 {
		m.RenewBefore = durationpb.New(p.RenewBefore)
	}
	for _, w := range p.FreezeWindows {
		m.FreezeWindows = append(m.FreezeWindows, &renewalschedulerv1.FreezeWindow{StartTime: timestamp(w.Start), EndTime: timestamp(w.End), Reason: w.Reason})
	}
	return m
}

func freezeWindows(in []*renewalschedulerv1.FreezeWindow) []store.FreezeWindow {
	out := make([]store.FreezeWindow, 0, len(in))
	for _, w := range in {
		out = append(out, store.FreezeWindow{Start: w.GetStartTime().AsTime(), End: w.GetEndTime().AsTime(), Reason: w.GetReason()})
	}
	return out
}

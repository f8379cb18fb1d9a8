package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/core"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

type policyServer struct {
	renewalschedulerv1.UnimplementedPolicyServiceServer
	*Server
}

func policySorting() (*page.Sorting, error) {
	return page.NewSorting(page.Column{SQL: "id", Kind: page.Text}, "create_time desc",
		page.Column{Field: "create_time", SQL: "create_time", Kind: page.Time}, page.Column{Field: "name", SQL: "name", Kind: page.Text})
}

// ListPolicies lists policies.
func (s *policyServer) ListPolicies(ctx context.Context, req *renewalschedulerv1.ListPoliciesRequest) (*renewalschedulerv1.ListPoliciesResponse, error) {
	list, scope, err := s.page(s.policySorting, store.Policies, req)
	if err != nil {
		return nil, err
	}
	policies, total, err := s.store.ListPolicies(ctx, list)
	if err != nil {
		return nil, err
	}
	policies, more := page.Cut(policies, list.Size)
	res := &renewalschedulerv1.ListPoliciesResponse{TotalSize: size(list, total)}
	for _, p := range policies {
		res.Policies = append(res.Policies, policyMessage(p))
	}
	if more {
		last := policies[len(policies)-1]
		key := page.TimeValue(last.CreateTime)
		if list.Order.Field() == "name" {
			key = page.TextValue(last.Name)
		}
		res.NextPageToken = s.codec.Encode(scope, list.Order.Cursor(key, page.TextValue(last.ID)))
	}
	return res, nil
}

// GetPolicy answers one.
func (s *policyServer) GetPolicy(ctx context.Context, req *renewalschedulerv1.GetPolicyRequest) (*renewalschedulerv1.GetPolicyResponse, error) {
	p, err := s.core.Policy(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &renewalschedulerv1.GetPolicyResponse{Policy: policyMessage(p)}, nil
}

// CreatePolicy stores a policy.
func (s *policyServer) CreatePolicy(ctx context.Context, req *renewalschedulerv1.CreatePolicyRequest) (*renewalschedulerv1.CreatePolicyResponse, error) {
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.CreatePolicyResponse]{
		Request: req, Empty: func() *renewalschedulerv1.CreatePolicyResponse { return &renewalschedulerv1.CreatePolicyResponse{} },
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.CreatePolicyResponse, error) {
			in := req.GetPolicy()
			p := &store.Policy{ID: in.GetId(), Automatic: true, MaxAttempts: core.DefaultMaxAttempts}
			setAll := slices.DeleteFunc(policyFields(), func(name string) bool {
				return name == "automatic" && in.Automatic == nil || name == "max_attempts" && in.GetMaxAttempts() == 0
			})
			for _, name := range setAll {
				setField(p, in, name)
			}
			p, err := s.core.CreatePolicy(ctx, tx, p)
			if err != nil {
				return nil, err
			}
			return &renewalschedulerv1.CreatePolicyResponse{Policy: policyMessage(p)}, nil
		},
	})
}

// UpdatePolicy changes fields.
func (s *policyServer) UpdatePolicy(ctx context.Context, req *renewalschedulerv1.UpdatePolicyRequest) (*renewalschedulerv1.UpdatePolicyResponse, error) {
	expected, err := mutation.Revision(ctx, req.GetIfRevision())
	if err != nil {
		return nil, err
	}
	fields, err := maskFields(req.GetUpdateMask(), req.GetPolicy())
	if err != nil {
		return nil, err
	}
	res, err := store.Do(ctx, s.store, store.Change[*renewalschedulerv1.UpdatePolicyResponse]{
		Request: req, Empty: func() *renewalschedulerv1.UpdatePolicyResponse { return &renewalschedulerv1.UpdatePolicyResponse{} },
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.UpdatePolicyResponse, error) {
			p, err := s.core.UpdatePolicy(ctx, tx, req.GetPolicy().GetId(), expected, func(p *store.Policy) ([]string, error) {
				for _, name := range fields {
					setField(p, req.GetPolicy(), name)
				}
				return fields, nil
			})
			if err != nil {
				return nil, err
			}
			return &renewalschedulerv1.UpdatePolicyResponse{Policy: policyMessage(p)}, nil
		},
	})
	if err == nil {
		s.core.Kicks().Renewals.Kick()
	}
	return res, err
}

// DeletePolicy removes a policy that no certificate uses.
func (s *policyServer) DeletePolicy(ctx context.Context, req *renewalschedulerv1.DeletePolicyRequest) (*renewalschedulerv1.DeletePolicyResponse, error) {
	expected, err := mutation.Revision(ctx, req.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.DeletePolicyResponse]{
		Request: req, Empty: func() *renewalschedulerv1.DeletePolicyResponse { return &renewalschedulerv1.DeletePolicyResponse{} },
		Prepare: func(ctx context.Context) error {
			if _, err := s.core.Policy(ctx, req.GetId()); err != nil {
				return err
			}
			return s.core.CheckPolicyUnused(ctx, req.GetId())
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.DeletePolicyResponse, error) {
			return &renewalschedulerv1.DeletePolicyResponse{}, s.core.DeletePolicy(ctx, tx, req.GetId(), expected)
		},
	})
}

// policyFields are those that callers may set.
func policyFields() []string {
	return []string{"name", "renew_at_fraction", "renew_before", "automatic", "max_attempts", "alert_days", "freeze_windows"}
}

// outputFields are in every policy that was read and may come back; they are not changed.
func outputFields() []string { return []string{"id", "create_time", "update_time", "revision"} }

// maskFields are the fields to change. Without a mask those that are set.
func maskFields(mask *fieldmaskpb.FieldMask, p *renewalschedulerv1.Policy) ([]string, error) {
	var fields []string
	for _, path := range mask.GetPaths() {
		name, _, _ := strings.Cut(path, ".")
		switch {
		case path == "*":
			return policyFields(), nil
		case slices.Contains(policyFields(), name):
			fields = append(fields, name)
		case slices.Contains(outputFields(), name):
		default:
			return nil, errs.Field("update_mask", "%q is not a field of a policy", path)
		}
	}
	if len(mask.GetPaths()) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(fields))), nil
	}
	m := p.ProtoReflect()
	for _, name := range policyFields() {
		if m.Has(m.Descriptor().Fields().ByName(protoName(name))) {
			fields = append(fields, name)
		}
	}
	return fields, nil
}

// setField takes one field over. Setting one of the two ways to say when clears the other.
func setField(p *store.Policy, in *renewalschedulerv1.Policy, name string) {
	switch name {
	case "name":
		p.Name = in.GetName()
	case "renew_at_fraction":
		p.RenewAtFraction = in.GetRenewAtFraction()
		if in.GetRenewAtFraction() != 0 && in.GetRenewBefore() == nil {
			p.RenewBefore = 0
		}
	case "renew_before":
		p.RenewBefore = in.GetRenewBefore().AsDuration()
		if in.GetRenewBefore() != nil && in.RenewAtFraction == nil {
			p.RenewAtFraction = 0
		}
	case "automatic":
		p.Automatic = in.Automatic == nil || in.GetAutomatic()
	case "max_attempts":
		p.MaxAttempts = int(in.GetMaxAttempts())
		if p.MaxAttempts == 0 {
			p.MaxAttempts = core.DefaultMaxAttempts
		}
	case "alert_days":
		p.AlertDays = in.GetAlertDays()
	case "freeze_windows":
		p.FreezeWindows = freezeWindows(in.GetFreezeWindows())
	}
}

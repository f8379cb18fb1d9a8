package core

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

const (
	maxName          = 255
	maxRenewBefore   = 10 * 366 * 24 * time.Hour
	maxFreezeWindows = 64
	maxAlertDays     = 16
	maxAlertDay      = 3650
	maxPolicyTries   = 100
)

// ownID is what a caller may call a resource: lower case, digits and "-".
var ownID = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])*$`)

// policyNotFound is 404.
func policyNotFound(id string) error {
	return errs.New(errs.NotFound, "POLICY_NOT_FOUND", "policy %s not found", id).With("policy_id", id)
}

// Policy reads a policy: 404.
func (c *Core) Policy(ctx context.Context, id string) (*store.Policy, error) {
	p, err := c.store.Policy(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, policyNotFound(id)
	}
	return p, err
}

// checkPolicy collects what is wrong with the values.
func checkPolicy(p *store.Policy) error {
	var v errs.Violations
	if name := strings.TrimSpace(p.Name); name == "" || len(p.Name) > maxName {
		v.Add("name", "must have 1 to %d bytes", maxName)
	}
	if p.RenewAtFraction != 0 && !(p.RenewAtFraction > 0 && p.RenewAtFraction < 1) {
		v.Add("renew_at_fraction", "must be above 0 and below 1")
	}
	if p.RenewBefore != 0 && (p.RenewBefore < time.Minute || p.RenewBefore > maxRenewBefore || p.RenewBefore%time.Second != 0) {
		v.Add("renew_before", "must be whole seconds, from one minute to ten years")
	}
	if p.RenewAtFraction != 0 && p.RenewBefore != 0 {
		v.Add("renew_before", "cannot be set together with renew_at_fraction")
	}
	if p.MaxAttempts < 1 || p.MaxAttempts > maxPolicyTries {
		v.Add("max_attempts", "must be from 1 to %d", maxPolicyTries)
	}
	checkLists(p, &v)
	return v.Err()
}

func checkLists(p *store.Policy, v *errs.Violations) {
	if len(p.AlertDays) > maxAlertDays {
		v.Add("alert_days", "has more than %d entries", maxAlertDays)
	}
	for i, d := range p.AlertDays {
		if d < 0 || d > maxAlertDay {
			v.Add(fmt.Sprintf("alert_days[%d]", i), "must be from 0 to %d", maxAlertDay)
		}
		if slices.Contains(p.AlertDays[:i], d) {
			v.Add(fmt.Sprintf("alert_days[%d]", i), "is there twice")
		}
	}
	if len(p.FreezeWindows) > maxFreezeWindows {
		v.Add("freeze_windows", "has more than %d entries", maxFreezeWindows)
	}
	for i, w := range p.FreezeWindows {
		if !w.Start.Before(w.End) {
			v.Add(fmt.Sprintf("freeze_windows[%d].end_time", i), "must be after start_time")
		}
		if len(w.Reason) > maxName {
			v.Add(fmt.Sprintf("freeze_windows[%d].reason", i), "has more than %d bytes", maxName)
		}
	}
}

// CreatePolicy stores a policy: 409 when the id is taken.
func (c *Core) CreatePolicy(ctx context.Context, tx *store.Tx, p *store.Policy) (*store.Policy, error) {
	if p.ID == "" {
		id, err := newID("pol")
		if err != nil {
			return nil, err
		}
		p.ID = id
	} else if len(p.ID) < 3 || len(p.ID) > 63 || !ownID.MatchString(p.ID) {
		return nil, errs.Field("id", "must have 3 to 63 lower-case letters, digits and single dashes between them")
	}
	if err := checkPolicy(p); err != nil {
		return nil, err
	}
	p.CreateTime, p.UpdateTime, p.Revision = c.now(), c.now(), 1
	err := tx.InsertPolicy(ctx, p)
	if errors.Is(err, store.ErrExists) {
		return nil, errs.New(errs.AlreadyExists, "POLICY_EXISTS", "policy %s exists already", p.ID).With("policy_id", p.ID)
	}
	if err != nil {
		return nil, err
	}
	c.policyChanged(ctx, tx, p.ID, "policy.created", map[string]any{"name": p.Name})
	return p, nil
}

// UpdatePolicy changes a policy; if its timing changes, plans follow in the background. Expected 0 is any revision.
func (c *Core) UpdatePolicy(ctx context.Context, tx *store.Tx, id string, expected int32, change func(*store.Policy) ([]string, error)) (*store.Policy, error) {
	p, err := c.lockPolicy(ctx, tx, id, expected)
	if err != nil {
		return nil, err
	}
	fields, err := change(p)
	if err != nil {
		return nil, err
	}
	if err := checkPolicy(p); err != nil {
		return nil, err
	}
	p.UpdateTime = c.now()
	p.Revision++
	if err := tx.UpdatePolicy(ctx, p); err != nil {
		return nil, err
	}
	changed := make([]any, 0, len(fields))
	for _, f := range fields {
		changed = append(changed, f)
	}
	c.policyChanged(ctx, tx, id, "policy.updated", map[string]any{"fields": changed, "revision": p.Revision})
	return p, nil
}

func (c *Core) lockPolicy(ctx context.Context, tx *store.Tx, id string, expected int32) (*store.Policy, error) {
	p, err := tx.LockPolicy(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, policyNotFound(id)
	}
	if err != nil {
		return nil, err
	}
	if expected != 0 && expected != p.Revision {
		return nil, mutation.Mismatch("policy "+id, expected, p.Revision)
	}
	return p, nil
}

// CheckPolicyUnused asks inventory: 409 when certificates use the policy.
func (c *Core) CheckPolicyUnused(ctx context.Context, id string) error {
	r, err := c.inventory.CountReferences(ctx, &inventoryv1.CountReferencesRequest{PolicyId: id})
	if err != nil {
		return fmt.Errorf("count certificates of policy: %w", err)
	}
	return refuseUsed(id, int(r.GetCertificates()))
}

func refuseUsed(id string, n int) error {
	if n == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "POLICY_IN_USE", "policy %s is used by %d certificates", id, n).With("policy_id", id)
}

// DeletePolicy removes a policy that no certificate uses.
func (c *Core) DeletePolicy(ctx context.Context, tx *store.Tx, id string, expected int32) error {
	if _, err := c.lockPolicy(ctx, tx, id, expected); err != nil {
		return err
	}
	n, err := tx.CountPolicyPlans(ctx, id)
	if err != nil {
		return err
	}
	if err := refuseUsed(id, n); err != nil {
		return err
	}
	if err := tx.DeletePolicy(ctx, id); err != nil {
		return err
	}
	c.policyChanged(ctx, tx, id, "policy.deleted", nil)
	return nil
}

func (c *Core) policyChanged(ctx context.Context, tx *store.Tx, id, action string, data map[string]any) {
	tx.Emit(ctx, auditlog.Event(ctx, auditlog.Entry{Action: action, ResourceType: "policy", ResourceID: id, Data: data}))
	tx.Changed(store.Policies)
}

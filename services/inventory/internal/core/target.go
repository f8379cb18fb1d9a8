package core

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// maxConfig bounds a target's configuration, in bytes.
const maxConfig = 64 << 10

// ListTargets lists targets.
func (c *Core) ListTargets(ctx context.Context, r *inventoryv1.ListTargetsRequest) (*inventoryv1.ListTargetsResponse, error) {
	f := store.TargetFilter{AgentID: r.GetAgentId(), Type: r.GetType(), Name: r.GetName()}
	p, err := listPage(ctx, c, r, lister[store.Target]{
		collection: store.Targets,
		rows: func(ctx context.Context, s store.Slice) ([]store.Target, error) {
			return c.store.ListTargets(ctx, f, s)
		},
		count: func(ctx context.Context) (int32, error) { return c.store.CountTargets(ctx, f) },
		cursor: func(t store.Target, field string) (page.Value, page.Value) {
			if field == "name" {
				return page.TextValue(t.Name), page.TextValue(t.ID)
			}
			return page.TimeValue(t.CreateTime), page.TextValue(t.ID)
		},
	})
	if err != nil {
		return nil, err
	}
	out := &inventoryv1.ListTargetsResponse{NextPageToken: p.next, TotalSize: p.total}
	for _, row := range p.rows {
		m, err := view.Target(row)
		if err != nil {
			return nil, err
		}
		out.Targets = append(out.Targets, m)
	}
	return out, nil
}

// GetTarget answers one.
func (c *Core) GetTarget(ctx context.Context, r *inventoryv1.GetTargetRequest) (*inventoryv1.GetTargetResponse, error) {
	row, err := c.store.GetTarget(ctx, r.GetId())
	if row, err = found(row, err, resourceTarget, r.GetId()); err != nil {
		return nil, err
	}
	m, err := view.Target(row)
	return &inventoryv1.GetTargetResponse{Target: m}, err
}

func targetRow(m *inventoryv1.Target) (store.Target, error) {
	config, err := view.Config(m.GetConfig())
	row := store.Target{ID: m.GetId(), Name: m.GetName(), AgentID: m.GetAgentId(), Type: m.GetType(), Config: config}
	view.SetEndpoint(&row, m.GetEndpoint())
	return row, err
}

// checkTarget looks at a target's shape; its configuration is judged by the connector of its type.
func (c *Core) checkTarget(row store.Target) error {
	var v errs.Violations
	checkID(&v, row.ID)
	checkName(&v, row.Name)
	if row.AgentID == "" {
		v.Add("agent_id", "is required")
	}
	if row.Type == "" {
		v.Add("type", "is required")
	}
	if len(row.Config) > maxConfig {
		v.Add("config", "is longer than %d bytes", maxConfig)
	}
	if bytes.Contains(row.Config, []byte(`\u0000`)) {
		v.Add("config", "holds a NUL character")
	}
	checkEndpoint(&v, row)
	if err := v.Err(); err != nil {
		return err
	}
	return configField(c.targets.Validate(row.Type, row.Config))
}

func checkEndpoint(v *errs.Violations, row store.Target) {
	if row.EndpointAddress == "" {
		if row.EndpointServerName != "" || row.EndpointStarttls != "" {
			v.Add("endpoint.address", "is required when the endpoint has a server_name or starttls")
		}
		return
	}
	host, port, err := net.SplitHostPort(row.EndpointAddress)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" || portErr != nil || n == 0 {
		v.Add("endpoint.address", "%q is not host:port", row.EndpointAddress)
	}
	if strings.ContainsAny(row.EndpointServerName, " \t\r\n\x00/:") {
		v.Add("endpoint.server_name", "%q is not a host name", row.EndpointServerName)
	}
}

// configField makes sure that a refused configuration names its field.
func configField(err error) error {
	if err == nil || len(errs.From(err).Violations()) > 0 {
		return err
	}
	if errs.IsKind(err, errs.Invalid) {
		return errs.Field("config", "%s", errs.From(err).Message())
	}
	return err
}

// CreateTarget stores a target.
func (c *Core) CreateTarget(ctx context.Context, r *inventoryv1.CreateTargetRequest) (*inventoryv1.CreateTargetResponse, error) {
	row, err := targetRow(r.GetTarget())
	if err != nil {
		return nil, err
	}
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.CreateTargetResponse]{
		Request: r,
		Empty:   func() *inventoryv1.CreateTargetResponse { return &inventoryv1.CreateTargetResponse{} },
		Prepare: func(context.Context) error { return c.checkTarget(row) },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.CreateTargetResponse, error) {
			stored, err := c.insertTarget(ctx, t, row)
			if err != nil {
				return nil, err
			}
			m, err := view.Target(stored)
			return &inventoryv1.CreateTargetResponse{Target: m}, err
		},
	})
}

func (c *Core) insertTarget(ctx context.Context, t *store.Tx, row store.Target) (store.Target, error) {
	a, err := t.LockAgent(ctx, row.AgentID)
	if errors.Is(err, store.ErrNotFound) {
		return row, errs.Field("agent_id", "there is no agent %q", row.AgentID)
	}
	if err != nil {
		return row, err
	}
	if a.Status == store.AgentRetired {
		return row, errs.Field("agent_id", "agent %q is retired", row.AgentID)
	}
	if row.ID == "" {
		if row.ID, err = newID("target"); err != nil {
			return row, err
		}
	}
	stored, err := t.InsertTarget(ctx, row)
	if store.IsUnique(err, "targets_pkey") {
		return row, errs.New(errs.AlreadyExists, "TARGET_EXISTS", "target %s exists already", row.ID).With("id", row.ID)
	}
	if err != nil {
		return row, err
	}
	audit(ctx, t, "target.created", resourceTarget, stored.ID, map[string]any{"name": stored.Name, "type": stored.Type, "agent_id": stored.AgentID})
	t.Changed(store.Targets)
	return stored, nil
}

// UpdateTarget changes the fields of the mask; when it matters to the host, what is bound is deployed again.
func (c *Core) UpdateTarget(ctx context.Context, r *inventoryv1.UpdateTargetRequest) (*inventoryv1.UpdateTargetResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.UpdateTargetResponse]{
		Request: r,
		Empty:   func() *inventoryv1.UpdateTargetResponse { return &inventoryv1.UpdateTargetResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.UpdateTargetResponse, error) {
			stored, err := c.applyTarget(ctx, t, r, expected)
			if err != nil {
				return nil, err
			}
			m, err := view.Target(stored)
			return &inventoryv1.UpdateTargetResponse{Target: m}, err
		},
	})
}

func (c *Core) applyTarget(ctx context.Context, t *store.Tx, r *inventoryv1.UpdateTargetRequest, expected int32) (store.Target, error) {
	id := r.GetTarget().GetId()
	base, err := t.LockTarget(ctx, id)
	if base, err = found(base, err, resourceTarget, id); err != nil {
		return base, err
	}
	if expected != 0 && base.Revision != expected {
		return base, mutation.Mismatch("target "+id, expected, base.Revision)
	}
	wanted, err := mergeTarget(base, r)
	if err != nil {
		return base, err
	}
	if err := c.checkTarget(wanted); err != nil {
		return base, err
	}
	stored, err := t.UpdateTarget(ctx, wanted)
	if err != nil {
		return base, err
	}
	changed := []string{}
	if base.Name != stored.Name {
		changed = append(changed, "name")
	}
	// Both come from the database, which writes jsonb in one way.
	config := !bytes.Equal(base.Config, stored.Config)
	if config {
		changed = append(changed, "config")
	}
	endpoint := base.EndpointAddress != stored.EndpointAddress || base.EndpointServerName != stored.EndpointServerName || base.EndpointStarttls != stored.EndpointStarttls
	if endpoint {
		changed = append(changed, "endpoint")
	}
	audit(ctx, t, "target.updated", resourceTarget, id, map[string]any{"fields": changed})
	t.Changed(store.Targets)
	if config || endpoint {
		return stored, c.redeploy(ctx, t, id)
	}
	return stored, nil
}

func mergeTarget(base store.Target, r *inventoryv1.UpdateTargetRequest) (store.Target, error) {
	in, err := targetRow(r.GetTarget())
	if err != nil {
		return base, err
	}
	out := base
	paths := r.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		return base, errs.Field("update_mask", "names no field to change")
	}
	var v errs.Violations
	for _, path := range paths {
		switch {
		case path == "name":
			out.Name = in.Name
		case path == "config" || strings.HasPrefix(path, "config."):
			// A configuration is one thing: which keys belong together only the connector knows.
			out.Config = in.Config
		case path == "endpoint":
			out.EndpointAddress, out.EndpointServerName, out.EndpointStarttls = in.EndpointAddress, in.EndpointServerName, in.EndpointStarttls
		case path == "endpoint.address":
			out.EndpointAddress = in.EndpointAddress
		case path == "endpoint.server_name":
			out.EndpointServerName = in.EndpointServerName
		case path == "endpoint.starttls":
			out.EndpointStarttls = in.EndpointStarttls
		case path == "agent_id" && in.AgentID != base.AgentID, path == "type" && in.Type != base.Type:
			v.Add(path, "cannot be changed: make another target")
		case slices.Contains([]string{"id", "agent_id", "type", "create_time", "update_time", "revision"}, path):
		default:
			v.Add("update_mask", "%q is not a field of a target", path)
		}
	}
	return out, v.Err()
}

// DeleteTarget removes a target that no certificate is bound to.
func (c *Core) DeleteTarget(ctx context.Context, r *inventoryv1.DeleteTargetRequest) (*inventoryv1.DeleteTargetResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.DeleteTargetResponse]{
		Request: r,
		Empty:   func() *inventoryv1.DeleteTargetResponse { return &inventoryv1.DeleteTargetResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.DeleteTargetResponse, error) {
			return &inventoryv1.DeleteTargetResponse{}, c.deleteTarget(ctx, t, r.GetId(), expected)
		},
	})
}

func (c *Core) deleteTarget(ctx context.Context, t *store.Tx, id string, expected int32) error {
	row, err := t.LockTarget(ctx, id)
	if row, err = found(row, err, resourceTarget, id); err != nil {
		return err
	}
	if expected != 0 && row.Revision != expected {
		return mutation.Mismatch("target "+id, expected, row.Revision)
	}
	// Bindings of revoked and archived certificates count for nothing.
	bound, err := t.CountBindings(ctx, id)
	if err != nil {
		return err
	}
	if bound > 0 {
		return errs.New(errs.Conflict, "TARGET_IN_USE", "target %s has %d certificates: take it off them first", id, bound)
	}
	if err := t.DropBindings(ctx, id); err != nil {
		return err
	}
	if err := t.DeleteTarget(ctx, id); err != nil {
		return err
	}
	audit(ctx, t, "target.deleted", resourceTarget, id, map[string]any{"name": row.Name, "type": row.Type, "agent_id": row.AgentID})
	t.Changed(store.Targets, store.Certificates)
	return nil
}

package core

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// UpdateCertificate changes the fields of the mask.
func (c *Core) UpdateCertificate(ctx context.Context, r *inventoryv1.UpdateCertificateRequest) (*inventoryv1.UpdateCertificateResponse, error) {
	id := r.GetCertificate().GetId()
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	// What peers are asked about is computed from the row outside of the transaction; the transaction then insists on that
	// very row.
	var wanted, base store.Certificate
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.UpdateCertificateResponse]{
		Request: r,
		Empty:   func() *inventoryv1.UpdateCertificateResponse { return &inventoryv1.UpdateCertificateResponse{} },
		Prepare: func(ctx context.Context) error {
			row, err := c.store.GetCertificate(ctx, id)
			if base, err = found(row, err, resourceCertificate, id); err != nil {
				return err
			}
			if expected != 0 && base.Revision != expected {
				return mutation.Mismatch("certificate "+id, expected, base.Revision)
			}
			if base.Final() {
				return wrongState(resourceCertificate, id, base.Status, "it can no longer be changed")
			}
			wanted, err = mergeCertificate(base, r)
			if err != nil {
				return err
			}
			if err := checkShape(wanted); err != nil {
				return err
			}
			return c.checkChange(ctx, base, &wanted)
		},
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.UpdateCertificateResponse, error) {
			stored, err := c.applyUpdate(ctx, t, base, wanted)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.UpdateCertificateResponse{Certificate: view.Certificate(stored)}, nil
		},
	})
}

// checkChange asks peers only about what has changed, so that a label can be set while a CA is misconfigured.
func (c *Core) checkChange(ctx context.Context, base store.Certificate, wanted *store.Certificate) error {
	same := wanted.CommonName == base.CommonName && slices.Equal(wanted.DNSNames, base.DNSNames) &&
		slices.Equal(wanted.IPAddresses, base.IPAddresses) && slices.Equal(wanted.EmailAddresses, base.EmailAddresses) &&
		slices.Equal(wanted.URIs, base.URIs) && wanted.IssuerID == base.IssuerID && wanted.ProfileID == base.ProfileID &&
		wanted.KeyAlgorithm == base.KeyAlgorithm
	if same && wanted.PolicyID == base.PolicyID {
		return nil
	}
	return c.checkWithPeers(ctx, wanted, wanted.PolicyID != base.PolicyID)
}

func (c *Core) applyUpdate(ctx context.Context, t *store.Tx, base, wanted store.Certificate) (store.Certificate, error) {
	current, err := t.LockCertificate(ctx, base.ID)
	if current, err = found(current, err, resourceCertificate, base.ID); err != nil {
		return current, err
	}
	if current.Revision != base.Revision {
		return current, errs.New(errs.Conflict, "CONCURRENT_CHANGE", "certificate %s was changed meanwhile; try again", base.ID).
			With("revision", strconv.Itoa(int(current.Revision)))
	}
	if err := t.UpdateCertificate(ctx, wanted); err != nil {
		return current, err
	}
	if err := c.rebind(ctx, t, base, wanted.TargetIDs); err != nil {
		return current, err
	}
	stored, err := t.GetCertificate(ctx, base.ID)
	if err != nil {
		return current, err
	}
	if err := c.certificatesChanged(ctx, t, "certificate.updated", stored); err != nil {
		return current, err
	}
	audit(ctx, t, "certificate.updated", resourceCertificate, base.ID, map[string]any{"fields": changedFields(base, stored)})
	t.Changed(store.Certificates)
	return stored, nil
}

// rebind brings the bindings to the wanted targets: what is new and has a version is deployed, what is gone is closed.
func (c *Core) rebind(ctx context.Context, t *store.Tx, base store.Certificate, wanted []string) error {
	added, removed := difference(wanted, base.TargetIDs), difference(base.TargetIDs, wanted)
	if len(removed) > 0 {
		if err := c.closeDeployments(ctx, t, store.DeploymentSelection{CertificateID: base.ID, TargetIDs: removed}, "the target was taken off the certificate"); err != nil {
			return err
		}
		if err := t.Unbind(ctx, base.ID, removed); err != nil {
			return err
		}
	}
	if len(added) == 0 {
		return nil
	}
	if err := c.checkTargets(ctx, t, wanted); err != nil {
		return err
	}
	if err := t.Bind(ctx, base.ID, added); err != nil {
		return err
	}
	targets, err := t.GetTargetAgents(ctx, added)
	if err != nil {
		return err
	}
	for _, target := range targets {
		v, err := t.VersionFor(ctx, base.ID, target.AgentID)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.desire(ctx, t, desired{certificateID: base.ID, targetID: target.ID, agentID: target.AgentID, version: v.Version}); err != nil {
			return err
		}
	}
	return nil
}

// difference gives what is in a and not in b.
func difference(a, b []string) []string {
	out := []string{}
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeCertificate gives the row with the fields of the mask taken from the request. Output-only fields are ignored
// (AIP-203), so that what was read can be sent back.
func mergeCertificate(base store.Certificate, r *inventoryv1.UpdateCertificateRequest) (store.Certificate, error) {
	in := view.CertificateRow(r.GetCertificate())
	out := base
	paths := r.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		return base, errs.Field("update_mask", "names no field to change")
	}
	var v errs.Violations
	for _, path := range paths {
		if key, ok := strings.CutPrefix(path, "labels."); ok {
			out.Labels = withLabel(out.Labels, key, in.Labels)
			continue
		}
		if !setCertificateField(&out, in, path) && !outputOnlyOfCertificate(path) {
			v.Add("update_mask", "%q is not a field of a certificate", path)
		}
	}
	setDefaults(&out)
	return out, v.Err()
}

func withLabel(labels map[string]string, key string, in map[string]string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		out[k] = v
	}
	delete(out, key)
	if v, ok := in[key]; ok {
		out[key] = v
	}
	return out
}

func setCertificateField(out *store.Certificate, in store.Certificate, path string) bool {
	switch path {
	case "name":
		out.Name = in.Name
	case "common_name":
		out.CommonName = in.CommonName
	case "dns_names":
		out.DNSNames = in.DNSNames
	case "ip_addresses":
		out.IPAddresses = in.IPAddresses
	case "email_addresses":
		out.EmailAddresses = in.EmailAddresses
	case "uris":
		out.URIs = in.URIs
	case "issuer_id":
		out.IssuerID = in.IssuerID
	case "profile_id":
		out.ProfileID = in.ProfileID
	case "policy_id":
		out.PolicyID = in.PolicyID
	case "target_ids":
		out.TargetIDs = in.TargetIDs
	case "key_algorithm":
		out.KeyAlgorithm = in.KeyAlgorithm
	case "owner":
		out.Owner = in.Owner
	case "team":
		out.Team = in.Team
	case "environment":
		out.Environment = in.Environment
	case "labels":
		out.Labels = in.Labels
	default:
		return false
	}
	return true
}

func outputOnlyOfCertificate(path string) bool {
	return slices.Contains([]string{
		"id", "status", "current_version", "serial_number", "fingerprint_sha256", "not_before", "not_after", "revocation_time",
		"revocation_reason", "create_time", "update_time", "revision",
	}, path)
}

func changedFields(a, b store.Certificate) []string {
	out := []string{}
	note := func(field string, same bool) {
		if !same {
			out = append(out, field)
		}
	}
	note("name", a.Name == b.Name)
	note("common_name", a.CommonName == b.CommonName)
	note("dns_names", slices.Equal(a.DNSNames, b.DNSNames))
	note("ip_addresses", slices.Equal(a.IPAddresses, b.IPAddresses))
	note("email_addresses", slices.Equal(a.EmailAddresses, b.EmailAddresses))
	note("uris", slices.Equal(a.URIs, b.URIs))
	note("issuer_id", a.IssuerID == b.IssuerID)
	note("profile_id", a.ProfileID == b.ProfileID)
	note("policy_id", a.PolicyID == b.PolicyID)
	note("target_ids", slices.Equal(a.TargetIDs, b.TargetIDs))
	note("key_algorithm", a.KeyAlgorithm == b.KeyAlgorithm)
	note("owner", a.Owner == b.Owner)
	note("team", a.Team == b.Team)
	note("environment", a.Environment == b.Environment)
	note("labels", equalLabels(a.Labels, b.Labels))
	return out
}

func equalLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}

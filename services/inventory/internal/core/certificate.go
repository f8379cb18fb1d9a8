package core

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// ListCertificates lists certificates.
func (c *Core) ListCertificates(ctx context.Context, r *inventoryv1.ListCertificatesRequest) (*inventoryv1.ListCertificatesResponse, error) {
	statuses, err := enumNames(r.GetStatus(), inventoryv1.Certificate_Status_name)
	if err != nil {
		return nil, err
	}
	f := store.CertificateFilter{
		Statuses: statuses, IssuerID: r.GetIssuerId(), ProfileID: r.GetProfileId(), PolicyID: r.GetPolicyId(), TargetID: r.GetTargetId(),
		AgentID: r.GetAgentId(), Owner: r.GetOwner(), Team: r.GetTeam(), Environment: r.GetEnvironment(), Name: r.GetName(),
		SerialNumber: normalHex(r.GetSerialNumber(), true), FingerprintSHA256: normalHex(r.GetFingerprintSha256(), false), Labels: r.GetLabel(),
		ExpiresBefore: timeOf(r.GetExpiresBefore()), ExpiresAfter: timeOf(r.GetExpiresAfter()),
	}
	p, err := listPage(ctx, c, r, lister[store.Certificate]{
		collection: store.Certificates,
		rows: func(ctx context.Context, s store.Slice) ([]store.Certificate, error) {
			return c.store.ListCertificates(ctx, f, s)
		},
		count:  func(ctx context.Context) (int32, error) { return c.store.CountCertificates(ctx, f) },
		cursor: certificateCursor,
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListCertificatesResponse{Certificates: view.Each(p.rows, view.Certificate), NextPageToken: p.next, TotalSize: p.total}, nil
}

func certificateCursor(v store.Certificate, field string) (page.Value, page.Value) {
	id := page.TextValue(v.ID)
	switch field {
	case "name":
		return page.TextValue(v.Name), id
	case "not_after", "expires_at":
		if v.NotAfter == nil {
			return page.Value{}, id
		}
		return page.TimeValue(*v.NotAfter), id
	case "update_time":
		return page.TimeValue(v.UpdateTime), id
	default:
		return page.TimeValue(v.CreateTime), id
	}
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

// normalHex brings hex as people copy it ("00:AB:…") to how it is stored.
func normalHex(s string, number bool) string {
	out := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
	if number && out != "" {
		if out = strings.TrimLeft(out, "0"); out == "" {
			out = "0"
		}
	}
	return out
}

// GetCertificate answers one.
func (c *Core) GetCertificate(ctx context.Context, r *inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
	row, err := c.store.GetCertificate(ctx, r.GetId())
	if row, err = found(row, err, resourceCertificate, r.GetId()); err != nil {
		return nil, err
	}
	return &inventoryv1.GetCertificateResponse{Certificate: view.Certificate(row)}, nil
}

// CreateCertificate stores what is wanted.
func (c *Core) CreateCertificate(ctx context.Context, r *inventoryv1.CreateCertificateRequest) (*inventoryv1.CreateCertificateResponse, error) {
	row := view.CertificateRow(r.GetCertificate())
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.CreateCertificateResponse]{
		Request: r,
		Empty:   func() *inventoryv1.CreateCertificateResponse { return &inventoryv1.CreateCertificateResponse{} },
		Prepare: func(ctx context.Context) error {
			setDefaults(&row)
			if err := checkShape(row); err != nil {
				return err
			}
			return c.checkWithPeers(ctx, &row, true)
		},
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.CreateCertificateResponse, error) {
			stored, err := c.insertCertificate(ctx, t, row)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.CreateCertificateResponse{Certificate: view.Certificate(stored)}, nil
		},
	})
}

func (c *Core) insertCertificate(ctx context.Context, t *store.Tx, row store.Certificate) (store.Certificate, error) {
	if row.ID == "" {
		id, err := newID("cert")
		if err != nil {
			return row, err
		}
		row.ID = id
	}
	if err := c.checkTargets(ctx, t, row.TargetIDs); err != nil {
		return row, err
	}
	stored, err := t.InsertCertificate(ctx, row)
	if store.IsUnique(err, "certificates_pkey") {
		return row, errs.New(errs.AlreadyExists, "CERTIFICATE_EXISTS", "certificate %s exists already", row.ID).With("id", row.ID)
	}
	if err != nil {
		return row, err
	}
	if err := c.certificatesChanged(ctx, t, "certificate.created", stored); err != nil {
		return row, err
	}
	audit(ctx, t, "certificate.created", resourceCertificate, stored.ID, map[string]any{
		"name": stored.Name, "dns_names": stored.DNSNames, "issuer_id": stored.IssuerID, "profile_id": stored.ProfileID,
		"policy_id": stored.PolicyID, "target_ids": stored.TargetIDs,
	})
	t.Changed(store.Certificates)
	return stored, nil
}

func setDefaults(row *store.Certificate) {
	if row.ProfileID == "" {
		row.ProfileID = DefaultProfile
	}
	if row.PolicyID == "" {
		row.PolicyID = DefaultPolicy
	}
	row.TargetIDs = slices.Compact(slices.Sorted(slices.Values(row.TargetIDs)))
}

// checkShape looks at what inventory can judge itself.
func checkShape(row store.Certificate) error {
	var v errs.Violations
	checkID(&v, row.ID)
	checkName(&v, row.Name)
	checkLabels(&v, row.Labels)
	if row.IssuerID == "" {
		v.Add("issuer_id", "is required")
	}
	if len(row.DNSNames)+len(row.IPAddresses)+len(row.EmailAddresses)+len(row.URIs) == 0 {
		v.Add("dns_names", "at least one of dns_names, ip_addresses, email_addresses and uris is needed")
	}
	for _, f := range []struct{ field, value string }{{"owner", row.Owner}, {"team", row.Team}, {"environment", row.Environment}} {
		if strings.ContainsRune(f.value, 0) {
			v.Add(f.field, "holds a NUL character")
		}
	}
	return v.Err()
}

// checkWithPeers asks issuance for names, issuer, profile and key, and the scheduler for the policy; names come back normalised.
func (c *Core) checkWithPeers(ctx context.Context, row *store.Certificate, policy bool) error {
	var v errs.Violations
	answer, err := c.issuance.CheckCertificateRequest(ctx, &issuancev1.CheckCertificateRequestRequest{
		IssuerId: row.IssuerID, ProfileId: row.ProfileID, Names: view.Names(*row), KeyAlgorithm: view.KeyAlgorithm(row.KeyAlgorithm),
	})
	if err != nil {
		return behind("issuance", err)
	}
	for _, bad := range answer.GetViolations() {
		v.Add(bad.GetField(), "%s", bad.GetDescription())
	}
	if policy {
		policies, err := c.scheduler.BatchGetPolicies(ctx, &renewalschedulerv1.BatchGetPoliciesRequest{Ids: []string{row.PolicyID}})
		if err != nil {
			return behind("renewalscheduler", err)
		}
		if len(policies.GetPolicies()) == 0 {
			v.Add("policy_id", "there is no policy %q", row.PolicyID)
		}
	}
	if err := v.Err(); err != nil {
		return err
	}
	if n := answer.GetNames(); n != nil {
		row.CommonName, row.DNSNames, row.IPAddresses = n.GetCommonName(), n.GetDnsNames(), n.GetIpAddresses()
		row.EmailAddresses, row.URIs = n.GetEmailAddresses(), n.GetUris()
	}
	if k := answer.GetKeyAlgorithm(); k != typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		row.KeyAlgorithm = view.KeyAlgorithmName(k)
	}
	return nil
}

// behind says which service a call could not reach; what a reachable one answers stays as it is.
func behind(service string, err error) error {
	if errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded) {
		return errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "service %s is not available; try again", service).
			With("service", service).RetryAfter(time.Second).Wrap(err)
	}
	return err
}

// checkTargets wants every target to exist on an agent that is not retired.
func (c *Core) checkTargets(ctx context.Context, t *store.Tx, ids []string) error {
	targets, err := t.GetTargetAgents(ctx, ids)
	if err != nil {
		return err
	}
	byID := make(map[string]store.TargetAgent, len(targets))
	for _, target := range targets {
		byID[target.ID] = target
	}
	var v errs.Violations
	for i, id := range ids {
		field := "target_ids[" + strconv.Itoa(i) + "]"
		switch target, ok := byID[id]; {
		case !ok:
			v.Add(field, "there is no target %q", id)
		case target.AgentStatus == store.AgentRetired:
			v.Add(field, "target %q is on agent %q, which is retired", id, target.AgentID)
		}
	}
	return v.Err()
}

// certificatesChanged tells the scheduler what certificates are now and who has no key for them yet.
func (c *Core) certificatesChanged(ctx context.Context, t *store.Tx, typ string, rows ...store.Certificate) error {
	ids := make([]string, 0, len(rows))
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	holders, err := t.KeyHolders(ctx, ids)
	if err != nil {
		return err
	}
	without := map[string][]string{}
	for _, h := range holders {
		if h.Version == 0 {
			without[h.CertificateID] = append(without[h.CertificateID], h.AgentID)
		}
	}
	for _, row := range rows {
		tell(t, toScheduler, typ, resourceCertificate, row.ID, &inventoryv1.CertificateChanged{
			Certificate: view.Certificate(row), AgentsWithoutVersion: without[row.ID], Actor: actor(ctx),
		})
	}
	return nil
}

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

// DeleteCertificate archives. A repeat answers the archived certificate.
func (c *Core) DeleteCertificate(ctx context.Context, r *inventoryv1.DeleteCertificateRequest) (*inventoryv1.DeleteCertificateResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.DeleteCertificateResponse]{
		Request: r,
		Empty:   func() *inventoryv1.DeleteCertificateResponse { return &inventoryv1.DeleteCertificateResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.DeleteCertificateResponse, error) {
			row, err := c.archive(ctx, t, r.GetId(), expected)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.DeleteCertificateResponse{Certificate: view.Certificate(row)}, nil
		},
	})
}

func (c *Core) archive(ctx context.Context, t *store.Tx, id string, expected int32) (store.Certificate, error) {
	row, err := t.LockCertificate(ctx, id)
	if row, err = found(row, err, resourceCertificate, id); err != nil {
		return row, err
	}
	if expected != 0 && row.Revision != expected {
		return row, mutation.Mismatch("certificate "+id, expected, row.Revision)
	}
	moved, err := t.ArchiveCertificate(ctx, id)
	if err != nil || !moved {
		return row, err
	}
	if err := c.release(ctx, t, id, "the certificate was archived"); err != nil {
		return row, err
	}
	row, err = t.GetCertificate(ctx, id)
	if err != nil {
		return row, err
	}
	if err := c.certificatesChanged(ctx, t, "certificate.archived", row); err != nil {
		return row, err
	}
	audit(ctx, t, "certificate.archived", resourceCertificate, id, map[string]any{"name": row.Name})
	t.Changed(store.Certificates)
	return row, nil
}

// release ends all work for a certificate that is no longer in care.
func (c *Core) release(ctx context.Context, t *store.Tx, certificateID, why string) error {
	if err := c.closeDeployments(ctx, t, store.DeploymentSelection{CertificateID: certificateID}, why); err != nil {
		return err
	}
	tasks, err := t.CancelOpen(ctx, store.OpenSelection{CertificateID: certificateID, Kind: store.KindCreateCsr})
	if err != nil {
		return err
	}
	for _, task := range tasks {
		c.taskFinished(ctx, t, task, "", &typev1.Problem{Reason: "TASK_CANCELLED", Message: why}, true)
	}
	return nil
}

// RevokeCertificate notes a revocation first and then tells the CA; should that fail now, the event sees to it later.
func (c *Core) RevokeCertificate(ctx context.Context, r *inventoryv1.RevokeCertificateRequest) (*inventoryv1.RevokeCertificateResponse, error) {
	answer, err := store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.RevokeCertificateResponse]{
		Request: r,
		Empty:   func() *inventoryv1.RevokeCertificateResponse { return &inventoryv1.RevokeCertificateResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.RevokeCertificateResponse, error) {
			revocation, err := c.revoke(ctx, t, r)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.RevokeCertificateResponse{Revocation: revocation}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	if answer.GetRevocation().GetState() == inventoryv1.Revocation_PENDING {
		c.tellIssuance(ctx, answer.GetRevocation())
	}
	return answer, nil
}

func (c *Core) revoke(ctx context.Context, t *store.Tx, r *inventoryv1.RevokeCertificateRequest) (*inventoryv1.Revocation, error) {
	row, err := t.LockCertificate(ctx, r.GetId())
	if row, err = found(row, err, resourceCertificate, r.GetId()); err != nil {
		return nil, err
	}
	reason := "UNSPECIFIED"
	if r.GetReason() != typev1.RevocationReason_REVOCATION_REASON_UNSPECIFIED {
		reason = r.GetReason().String()
	}
	if r.GetVersion() > 0 {
		return c.revokeVersion(ctx, t, row, r, reason)
	}
	return c.revokeAll(ctx, t, row, r, reason)
}

func (c *Core) revokeVersion(ctx context.Context, t *store.Tx, row store.Certificate, r *inventoryv1.RevokeCertificateRequest, reason string) (*inventoryv1.Revocation, error) {
	v, err := t.GetVersion(ctx, row.ID, r.GetVersion())
	if errors.Is(err, store.ErrNotFound) {
		return nil, errs.New(errs.NotFound, "VERSION_NOT_FOUND", "certificate %s has no version %d", row.ID, r.GetVersion())
	}
	if err != nil {
		return nil, err
	}
	if v.RevocationTime != nil {
		return revocationOf(row.ID, v.RevocationReason, *v.RevocationTime, []store.Version{v}), nil
	}
	now := time.Now().UTC()
	versions, err := t.RevokeVersions(ctx, row.ID, r.GetVersion(), reason, now)
	if err != nil {
		return nil, err
	}
	// The scheduler replaces a version that was in use.
	for _, to := range []string{toScheduler, toIssuance} {
		tell(t, to, "version.revoked", resourceCertificate, row.ID, c.revoked(ctx, row, versions, r.GetReason()))
	}
	audit(ctx, t, "version.revoked", resourceCertificate, row.ID, map[string]any{"version": r.GetVersion(), "serial_number": v.SerialNumber, "reason": reason})
	return revocationOf(row.ID, reason, now, versions), nil
}

func (c *Core) revokeAll(ctx context.Context, t *store.Tx, row store.Certificate, r *inventoryv1.RevokeCertificateRequest, reason string) (*inventoryv1.Revocation, error) {
	now := time.Now().UTC()
	moved, err := t.RevokeCertificate(ctx, row.ID, reason, now)
	if err != nil {
		return nil, err
	}
	if !moved {
		if row.Status == store.CertificateArchived {
			return nil, wrongState(resourceCertificate, row.ID, row.Status, "revoke its versions one by one")
		}
		versions, err := t.RevokedVersions(ctx, row.ID)
		if err != nil {
			return nil, err
		}
		return revocationOf(row.ID, row.RevocationReason, *row.RevocationTime, versions), nil
	}
	versions, err := t.RevokeVersions(ctx, row.ID, 0, reason, now)
	if err != nil {
		return nil, err
	}
	if err := c.release(ctx, t, row.ID, "the certificate was revoked"); err != nil {
		return nil, err
	}
	if row, err = t.GetCertificate(ctx, row.ID); err != nil {
		return nil, err
	}
	for _, to := range []string{toScheduler, toIssuance} {
		tell(t, to, "certificate.revoked", resourceCertificate, row.ID, c.revoked(ctx, row, versions, r.GetReason()))
	}
	audit(ctx, t, "certificate.revoked", resourceCertificate, row.ID, map[string]any{"reason": reason, "versions": len(versions)})
	t.Changed(store.Certificates)
	return revocationOf(row.ID, reason, now, versions), nil
}

func (c *Core) revoked(ctx context.Context, row store.Certificate, versions []store.Version, reason typev1.RevocationReason) *inventoryv1.CertificateChanged {
	return &inventoryv1.CertificateChanged{
		Certificate: view.Certificate(row), Actor: actor(ctx), RevokedVersions: view.RevokedVersions(versions), RevocationReason: reason,
	}
}

func revocationOf(id, reason string, at time.Time, versions []store.Version) *inventoryv1.Revocation {
	state := inventoryv1.Revocation_REVOKED
	if slices.ContainsFunc(versions, func(v store.Version) bool { return v.RevocationState == "PENDING" }) {
		state = inventoryv1.Revocation_PENDING
	}
	return &inventoryv1.Revocation{
		CertificateId: id, State: state, Reason: reason, RevocationTime: timestamppb.New(at), Versions: view.RevokedVersions(versions),
	}
}

// tellTimeout bounds how long a revocation waits for a CA that is slow.
const tellTimeout = 5 * time.Second

// tellIssuance tells the CA at once, so that a CRL is right when the answer is. It changes the answer to REVOKED when that
// worked; that it did not is no error.
func (c *Core) tellIssuance(ctx context.Context, r *inventoryv1.Revocation) {
	serials := make([]string, 0, len(r.GetVersions()))
	for _, v := range r.GetVersions() {
		serials = append(serials, v.GetSerialNumber())
	}
	callCtx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	answer, err := c.issuance.RevokeVersions(callCtx, &issuancev1.RevokeVersionsRequest{
		CertificateId: r.GetCertificateId(), SerialNumbers: serials,
		Reason:         typev1.RevocationReason(typev1.RevocationReason_value[r.GetReason()]),
		RevocationTime: r.GetRevocationTime(),
	})
	if err != nil || !answer.GetDone() {
		c.log.Info("revocation goes to the CA later", certificateField(r.GetCertificateId()), errorField(err))
		return
	}
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		_, err := t.FinishRevocations(ctx, r.GetCertificateId(), serials)
		return err
	})
	if err != nil {
		c.log.Warn("note finished revocation", certificateField(r.GetCertificateId()), errorField(err))
		return
	}
	r.State = inventoryv1.Revocation_REVOKED
}

// ListCertificateVersions lists what was issued.
func (c *Core) ListCertificateVersions(ctx context.Context, r *inventoryv1.ListCertificateVersionsRequest) (*inventoryv1.ListCertificateVersionsResponse, error) {
	row, err := c.store.GetCertificate(ctx, r.GetCertificateId())
	if _, err = found(row, err, resourceCertificate, r.GetCertificateId()); err != nil {
		return nil, err
	}
	p, err := listPage(ctx, c, r, lister[store.Version]{
		collection: "versions",
		rows: func(ctx context.Context, s store.Slice) ([]store.Version, error) {
			return c.store.ListVersions(ctx, r.GetCertificateId(), s)
		},
		count: func(ctx context.Context) (int32, error) { return c.store.CountVersions(ctx, r.GetCertificateId()) },
		cursor: func(v store.Version, _ string) (page.Value, page.Value) {
			return page.Value{}, page.IntValue(int64(v.Version))
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListCertificateVersionsResponse{Versions: view.Each(p.rows, view.Version), NextPageToken: p.next, TotalSize: p.total}, nil
}

// GetCertificateVersion answers one version.
func (c *Core) GetCertificateVersion(ctx context.Context, r *inventoryv1.GetCertificateVersionRequest) (*inventoryv1.GetCertificateVersionResponse, error) {
	v, err := c.version(ctx, r.GetCertificateId(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetCertificateVersionResponse{Version: view.Version(v)}, nil
}

// CertificatePEM answers leaf and chain of a version.
func (c *Core) CertificatePEM(ctx context.Context, certificateID string, version int32) ([]byte, error) {
	v, err := c.version(ctx, certificateID, version)
	if err != nil {
		return nil, err
	}
	leaf := v.CertificatePEM
	if leaf != "" && !strings.HasSuffix(leaf, "\n") {
		leaf += "\n"
	}
	return []byte(leaf + v.ChainPEM), nil
}

func (c *Core) version(ctx context.Context, certificateID string, version int32) (store.Version, error) {
	v, err := c.store.GetVersion(ctx, certificateID, version)
	if errors.Is(err, store.ErrNotFound) {
		row, err := c.store.GetCertificate(ctx, certificateID)
		if _, err = found(row, err, resourceCertificate, certificateID); err != nil {
			return v, err
		}
		return v, errs.New(errs.NotFound, "VERSION_NOT_FOUND", "certificate %s has no version %d", certificateID, version)
	}
	return v, err
}

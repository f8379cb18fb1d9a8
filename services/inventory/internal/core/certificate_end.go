package core

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

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

// release ends all work for a certificate that is no longer in care, whose row is locked: its deployments go, and with them what
// agents were to do.
func (c *Core) release(ctx context.Context, t *store.Tx, certificateID, why string) error {
	deployments, err := t.DeleteDeployments(ctx, store.DeploymentSelection{CertificateID: certificateID})
	if err != nil {
		return err
	}
	tasks, err := t.CancelOpen(ctx, store.OpenSelection{CertificateID: certificateID})
	if err != nil {
		return err
	}
	for _, d := range deployments {
		c.deploymentClosed(ctx, t, d, why)
	}
	for _, task := range tasks {
		if task.Kind == store.KindCreateCsr {
			c.taskFinished(ctx, t, task, "", &typev1.Problem{Reason: "TASK_CANCELLED", Message: why}, true)
		}
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
	reason := "UNSPECIFIED"
	if r.GetReason() != typev1.RevocationReason_REVOCATION_REASON_UNSPECIFIED {
		reason = r.GetReason().String()
	}
	if r.GetVersion() > 0 {
		return c.revokeVersion(ctx, t, r, reason)
	}
	return c.revokeAll(ctx, t, r, reason)
}

func (c *Core) revokeVersion(ctx context.Context, t *store.Tx, r *inventoryv1.RevokeCertificateRequest, reason string) (*inventoryv1.Revocation, error) {
	row, err := t.LockCertificate(ctx, r.GetId())
	if row, err = found(row, err, resourceCertificate, r.GetId()); err != nil {
		return nil, err
	}
	v, err := t.GetVersion(ctx, row.ID, r.GetVersion())
	if errors.Is(err, store.ErrNotFound) {
		return nil, errs.New(errs.NotFound, "VERSION_NOT_FOUND", "certificate %s has no version %d", row.ID, r.GetVersion())
	}
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Microsecond) // what Postgres keeps: a repeat answers the same
	if v.RevocationTime != nil {
		if v.RevocationState == "FAILED" {
			return c.revokeAgain(ctx, t, row, r, reason, now)
		}
		return revocationOf(row.ID, v.RevocationReason, *v.RevocationTime, []store.Version{v}), nil
	}
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

func (c *Core) revokeAll(ctx context.Context, t *store.Tx, r *inventoryv1.RevokeCertificateRequest, reason string) (*inventoryv1.Revocation, error) {
	now := time.Now().UTC().Truncate(time.Microsecond) // what Postgres keeps: a repeat answers the same
	row, moved, err := t.RevokeCertificate(ctx, r.GetId(), reason, now)
	if err != nil {
		return nil, err
	}
	if !moved {
		return c.revokedBefore(ctx, t, r, reason, now)
	}
	versions, err := t.RevokeVersions(ctx, row.ID, 0, reason, now)
	if err != nil {
		return nil, err
	}
	if err := c.release(ctx, t, row.ID, "the certificate was revoked"); err != nil {
		return nil, err
	}
	for _, to := range []string{toScheduler, toIssuance} {
		tell(t, to, "certificate.revoked", resourceCertificate, row.ID, c.revoked(ctx, row, versions, r.GetReason()))
	}
	audit(ctx, t, "certificate.revoked", resourceCertificate, row.ID, map[string]any{"reason": reason, "versions": len(versions)})
	t.Changed(store.Certificates)
	return revocationOf(row.ID, reason, now, versions), nil
}

// revokedBefore answers for a certificate that cannot be revoked, or is already.
func (c *Core) revokedBefore(ctx context.Context, t *store.Tx, r *inventoryv1.RevokeCertificateRequest, reason string, now time.Time) (*inventoryv1.Revocation, error) {
	row, err := t.LockCertificate(ctx, r.GetId())
	if row, err = found(row, err, resourceCertificate, r.GetId()); err != nil {
		return nil, err
	}
	switch {
	case row.Status == store.CertificateArchived:
		return nil, wrongState(resourceCertificate, row.ID, row.Status, "revoke its versions one by one")
	case row.RevocationTime == nil:
		return nil, notFound(resourceCertificate, row.ID) // it was not there yet when it was to be revoked
	}
	versions, err := t.RevokedVersions(ctx, row.ID)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(versions, func(v store.Version) bool { return v.RevocationState == "FAILED" }) {
		return c.revokeAgain(ctx, t, row, r, reason, now)
	}
	return revocationOf(row.ID, row.RevocationReason, *row.RevocationTime, versions), nil
}

// revokeAgain tells the CA once more of what it refused, perhaps for another reason.
func (c *Core) revokeAgain(ctx context.Context, t *store.Tx, row store.Certificate, r *inventoryv1.RevokeCertificateRequest, reason string, now time.Time) (*inventoryv1.Revocation, error) {
	versions, err := t.RetryRevocations(ctx, row.ID, r.GetVersion(), reason, now)
	if err != nil {
		return nil, err
	}
	again := c.revoked(ctx, row, versions, r.GetReason())
	again.Certificate.RevocationTime = timestamppb.New(now)
	tell(t, toIssuance, "version.revoked", resourceCertificate, row.ID, again)
	audit(ctx, t, "certificate.revocation_retried", resourceCertificate, row.ID, map[string]any{"reason": reason, "versions": len(versions)})
	return revocationOf(row.ID, reason, now, versions), nil
}

func (c *Core) revoked(ctx context.Context, row store.Certificate, versions []store.Version, reason typev1.RevocationReason) *inventoryv1.CertificateChanged {
	return &inventoryv1.CertificateChanged{
		Certificate: view.Certificate(row), Actor: actor(ctx), RevokedVersions: view.RevokedVersions(versions), RevocationReason: reason,
	}
}

func revocationOf(id, reason string, at time.Time, versions []store.Version) *inventoryv1.Revocation {
	state := inventoryv1.Revocation_REVOKED
	for _, s := range []string{"AWAITING_APPROVAL", "FAILED", "PENDING"} { // the last that there is decides
		if slices.ContainsFunc(versions, func(v store.Version) bool { return v.RevocationState == s }) {
			state = view.RevocationState(s)
		}
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
	if err := c.store.FinishRevocationsSoon(ctx, store.Finished{CertificateID: r.GetCertificateId(), SerialNumbers: serials}); err != nil {
		c.log.Warn("note finished revocation", certificateField(r.GetCertificateId()), errorField(err))
		return
	}
	r.State = inventoryv1.Revocation_REVOKED
}

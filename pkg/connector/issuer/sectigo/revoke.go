package sectigo

import (
	"context"
	"net/http"
	"slices"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// Revoke revokes by the sslId, if it is still that of the certificate. One that was replaced since is revoked by its serial
// number, as the sslId is the new certificate's.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	if !slices.Contains(capabilities().Reasons, r.Reason) {
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "Sectigo revokes nothing for %s", r.Reason)
	}
	number, err := sslOf(r.Ref)
	switch {
	case err != nil && r.Certificate == nil:
		return issuer.Revocation{}, err
	case err != nil:
		return i.revoke(ctx, r, "serial", colons(r.Certificate.SerialNumber))
	}
	d, err := i.details(ctx, number)
	if err != nil {
		return issuer.Revocation{}, err
	}
	switch {
	case r.Certificate != nil && serial(d.SerialNumber) != issuer.FormatSerial(r.Certificate.SerialNumber):
		return i.revoke(ctx, r, "serial", colons(r.Certificate.SerialNumber))
	case plain(d.Status) == "revoked":
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	return i.revoke(ctx, r, number)
}

func (i *Issuer) revoke(ctx context.Context, r issuer.RevokeRequest, what ...string) (issuer.Revocation, error) {
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodPost, Path: slices.Concat([]string{"ssl", "v1", "revoke"}, what), Changes: true, Ref: r.Ref,
		Body: revocation{ReasonCode: int(r.Reason), Reason: "revoked by certctl: " + r.Reason.String()},
	}, nil)
	if e, ok := caclient.AsStatus(err); ok && e.Status == http.StatusBadRequest {
		if code, _ := codeOf(e); code == -159 { // revoked already
			return issuer.Revocation{State: issuer.Revoked}, nil
		}
	}
	if err != nil {
		return issuer.Revocation{}, err
	}
	return issuer.Revocation{State: issuer.Revoked}, nil
}

// Cancel declines a request that waits for approval. A replacement cannot be given up: its certificate is there.
func (i *Issuer) Cancel(ctx context.Context, ref issuer.Ref) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	number, err := sslOf(ref)
	if err != nil {
		return err
	}
	d, err := i.details(ctx, number)
	if err != nil {
		return err
	}
	switch {
	case stateOf(d.Status) == issuer.Rejected:
		return nil
	case ref[refReplaced] != "":
		return issuer.Permanent("REPLACEMENT_UNDER_WAY", "Sectigo has no way to give up a replacement")
	}
	_, err = i.client.JSON(ctx, caclient.Call{
		Method: http.MethodPost, Path: []string{"ssl", "v1", "decline", number}, Changes: true, Ref: ref,
		Body: message{Message: "cancelled by certctl"},
	}, nil)
	return err
}

// Test asks whether the login is known and whether the organization has the profile, and the profile the term.
func (i *Issuer) Test(ctx context.Context) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	i.mu.Lock()
	i.profile = nil // ask, even if it was asked a moment ago
	i.mu.Unlock()
	p, err := i.profileOf(ctx)
	if err != nil {
		return i.client.TestError(err)
	}
	if term := i.settings.Term; term != 0 && !slices.Contains(p.Terms, term) {
		return termUnknown(term, p)
	}
	return i.client.TestError(nil) // calls succeed with files that were replaced by ones that cannot be used
}

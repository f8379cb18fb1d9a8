package entrustecs

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// reasonNames are those that Entrust takes. It took more once.
func reasonNames() map[issuer.Reason]string {
	return map[issuer.Reason]string{issuer.Unspecified: "unspecified", issuer.KeyCompromise: "keyCompromise"}
}

func reasons() []issuer.Reason { return []issuer.Reason{issuer.Unspecified, issuer.KeyCompromise} }

// Revoke revokes at once. What Entrust says to a certificate that is revoked already is not documented: after a refusal the
// certificate itself is looked at.
func (i *Issuer) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	name, ok := reasonNames()[r.Reason]
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "Entrust revokes for keyCompromise or for no reason in particular, not for %s", r.Reason)
	}
	id, serial, err := i.toRevoke(ctx, r)
	if err != nil {
		return issuer.Revocation{}, err
	}
	err = i.revoke(ctx, id, name)
	if err == nil {
		return issuer.Revocation{State: issuer.Revoked}, nil
	}
	if isRefusal(err) {
		c, _, lookErr := i.fetch(ctx, id)
		switch {
		case lookErr != nil || serialOf(c) != serial:
		case strings.EqualFold(c.Status, "REVOKED"):
			return issuer.Revocation{State: issuer.Revoked, Detail: "it was revoked already"}, nil
		case strings.EqualFold(c.Status, "REISSUED"):
			return issuer.Revocation{State: issuer.Revoked, Detail: "it was re-issued, by which Entrust revokes it"}, nil
		}
	}
	return issuer.Revocation{}, err
}

func (i *Issuer) revoke(ctx context.Context, id, reason string) error {
	_, err := i.client.Bytes(ctx, caclient.Call{
		Method: http.MethodPost, Path: []string{"certificates", id, "revocations"}, Changes: true, Map: mapUnknownCertificate,
		Body: revocationRequest{CRLReason: reason, RevocationComment: "revoked by certctl"},
	})
	return err
}

const reasonNoCertificate = "CERTIFICATE_NOT_FOUND"

func mapUnknownCertificate(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(reasonNoCertificate, e)
	}
	return nil
}

// isRefusal tells whether Entrust said no to a request about a certificate that it has.
func isRefusal(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && p.Fault == issuer.FaultRequest && p.Reason != reasonNoCertificate
}

// toRevoke gives tracking id and serial number of the certificate to revoke. A re-issue may keep the tracking id, so that the
// certificate of the order's reference is held against the serial number: another one is in use, and is not revoked.
func (i *Issuer) toRevoke(ctx context.Context, r issuer.RevokeRequest) (id, serial string, err error) {
	serial = r.Ref[refSerial]
	if r.Certificate != nil && r.Certificate.SerialNumber != nil {
		serial = issuer.FormatSerial(r.Certificate.SerialNumber)
	}
	if serial == "" {
		return "", "", issuer.Permanent("CERTIFICATE_MISSING", "revocation needs the certificate, or its serial number in the reference of the order")
	}
	if id = r.Ref[refTracking]; trackingForm.MatchString(id) {
		c, _, err := i.fetch(ctx, id)
		if err != nil && !isMissing(err) {
			return "", "", err
		}
		if err == nil && serialOf(c) == serial {
			return id, serial, nil
		}
	}
	id, err = i.idOfSerial(ctx, serial)
	return id, serial, err
}

// idOfSerial looks a certificate up by its serial number.
func (i *Issuer) idOfSerial(ctx context.Context, serial string) (string, error) {
	page, err := i.list(ctx, url.Values{"serialNumber": {strings.ToUpper(serial)}}, 0)
	if err != nil {
		return "", err
	}
	for _, listed := range page.Certificates {
		if ours, ok := canonical(listed.SerialNumber); !ok || ours != serial || listed.TrackingID <= 0 {
			continue
		}
		id := strconv.FormatInt(listed.TrackingID, 10)
		c, _, err := i.fetch(ctx, id)
		if err != nil || serialOf(c) == serial {
			return id, err
		}
	}
	return "", issuer.Permanent(reasonNoCertificate, "Entrust has no certificate with serial number %s", serial)
}

// Cancel declines a request that waits for approval. (Deactivation is for certificates, and only ends the reminders of
// their end.)
func (i *Issuer) Cancel(ctx context.Context, ref issuer.Ref) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	id := ref[refTracking]
	if !trackingForm.MatchString(id) {
		return issuer.Permanent(issuer.ReasonOrderNotFound, "the reference of the order has no tracking id of Entrust")
	}
	_, err := i.client.Bytes(ctx, caclient.Call{
		Method: http.MethodPatch, Path: []string{"certificates", id}, Changes: true, Ref: ref, Map: mapCancel,
		Body: statusChange{Operation: operationDecline, DeclineReason: "cancelled by certctl"},
	})
	if !isRefusal(err) {
		return err
	}
	c, _, lookErr := i.fetch(ctx, id)
	switch {
	case lookErr != nil:
		return err
	case fateOf(c.Status) == ended || fateOf(c.Status) == recalled && !strings.EqualFold(c.Status, "SUSPENDED"):
		return nil
	case fateOf(c.Status) == made:
		return issuer.Permanent("ORDER_ISSUED", "%s", fmt.Sprintf("the order cannot be cancelled: Entrust calls it %s", caclient.Clean(c.Status)))
	}
	return err
}

// mapCancel: who may order need not be allowed to decline.
func mapCancel(e *caclient.StatusError) error {
	switch e.Status {
	case http.StatusForbidden:
		return caclient.Refused("CANCEL_NOT_ALLOWED", e)
	case http.StatusNotFound:
		return caclient.Refused(issuer.ReasonOrderNotFound, e)
	}
	return nil
}

// Package entrustecs gets certificates from Entrust Certificate Services (ECS Enterprise) by version 2 of its REST API. It
// is another product than Entrust CA Gateway (package entrustgateway).
//
// Entrust left the business of public TLS certificates: Sectigo took over its customers and contracts in 2025, and the
// certificates that ECS still gives out come from other CAs, if from any. Private certificates (PRIVATE_SSL) are not
// concerned. Before buying into it, ask whether package sectigo is what you need.
//
// An order has our order's id in its tracking information, which is what one whose reply was lost is found by. Entrust's
// list does not show it: the certificates of the order's name are looked at one by one.
package entrustecs

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/secretbox"
)

// TypeName is the name of the type in the API.
const TypeName = "entrust-ecs"

// The entries of a Ref.
const (
	refTracking = "tracking_id"
	refSerial   = "serial_number"
	refKey      = "key"      // caclient.KeyID of the order's key
	refReplaces = "replaces" // the tracking id that was renewed or re-issued
	refOld      = "replaced" // and the serial number of its certificate
)

// Issuer is one client of an account, for one product. It is safe for concurrent use.
type Issuer struct {
	settings Settings
	client   *caclient.Client
	now      func() time.Time
}

var (
	_ issuer.Issuer    = (*Issuer)(nil)
	_ issuer.Revoker   = (*Issuer)(nil)
	_ issuer.Finder    = (*Issuer)(nil)
	_ issuer.Lister    = (*Issuer)(nil)
	_ issuer.Canceller = (*Issuer)(nil)
	_ issuer.Tester    = (*Issuer)(nil)
	_ issuer.Metered   = (*Issuer)(nil)
)

// New makes an issuer of settings and the API user's key. It reads the files and calls nobody.
func New(s Settings, apiKey secretbox.Secret, d issuer.Deps) (*Issuer, error) {
	s.setDefaults()
	basic := secretbox.NewSecret(base64.StdEncoding.EncodeToString([]byte(s.Username + ":" + apiKey.Reveal())))
	client, err := caclient.New(caclient.Config{
		BaseURL: s.BaseURL + "/v2", Settings: s.Settings, Identity: []string{s.Username},
		CredentialField: fieldKey, Secrets: []secretbox.Secret{apiKey, basic},
		Authorize: func(_ context.Context, h http.Header) error {
			h.Set("Authorization", "Basic "+basic.Reveal())
			return nil
		},
	}, d)
	if err != nil {
		return nil, err
	}
	return &Issuer{settings: s, client: client, now: d.Clock()}, nil
}

// Account gives the guard that all calls go through.
func (i *Issuer) Account() *account.Guard { return i.client.Account() }

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{Async: true, Revocation: true, Find: true, List: true, Cancel: true, Reissue: true, Reasons: reasons()}
}

// Submit orders a certificate, or renews or re-issues the one before as the settings say.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, err
	}
	body, err := newRequest(r, i.settings, i.now())
	if err != nil {
		return issuer.Submission{}, err
	}
	kind, before := i.kindOf(r)
	found, err := i.order(ctx, kind, replaced{before, serialBefore(r)}, body)
	if refused, ok := issuer.AsPermanent(err); ok && kind == renewalRenew && i.settings.Renewal == renewalAuto && refused.Fault == issuer.FaultRequest {
		return i.orderAnew(ctx, before, body, refused)
	}
	return found, err
}

// orderAnew orders what cannot be renewed any more, unless Entrust refused because there is a renewal already: it may be this
// order's own, whose reply was lost, and a new order would buy the certificate a second time.
func (i *Issuer) orderAnew(ctx context.Context, before string, body certificateRequest, refusal error) (issuer.Submission, error) {
	c, _, err := i.fetch(ctx, before)
	switch {
	case isMissing(err):
	case err != nil:
		return issuer.Submission{}, err
	case succeeded(c.Status):
		return issuer.Submission{}, issuer.UnknownOutcome(nil, fmt.Errorf("the renewal of certificate %s is refused, which Entrust calls %s: "+
			"there is a renewal already, and it may be this one (%v)", before, caclient.Clean(c.Status), refusal))
	}
	return i.order(ctx, renewalNew, replaced{}, body)
}

// replaced is the certificate that a renewal or a re-issue is of.
type replaced struct{ tracking, serial string }

// serialBefore gives the serial number of the certificate that an order renews, empty if it is not known.
func serialBefore(r issuer.SubmitRequest) string {
	if c := r.PreviousCertificate; c != nil && c.SerialNumber != nil {
		return issuer.FormatSerial(c.SerialNumber)
	}
	return r.Previous[refSerial]
}

// minAge is how old a certificate has to be for Entrust to renew it.
const minAge = 30 * 24 * time.Hour

// kindOf decides between new order, renewal and re-issue.
func (i *Issuer) kindOf(r issuer.SubmitRequest) (kind, before string) {
	before = r.Previous[refTracking]
	if !trackingForm.MatchString(before) {
		return renewalNew, ""
	}
	switch kind = i.settings.Renewal; kind {
	case renewalRenew, renewalReissue:
		return kind, before
	case renewalAuto:
		if c := r.PreviousCertificate; c != nil && i.now().Sub(c.NotBefore) > minAge && i.now().Before(c.NotAfter) {
			return renewalRenew, before
		}
	}
	return renewalNew, ""
}

// order sends a request of a kind.
func (i *Issuer) order(ctx context.Context, kind string, before replaced, body certificateRequest) (issuer.Submission, error) {
	call := caclient.Call{Method: http.MethodPost, Path: []string{"certificates"}, Changes: true, Map: mapOrder}
	ref := issuer.Ref{refKey: keyOfText(body.CSR)}
	if kind != renewalNew {
		ref = replacing(ref, before)
	}
	switch kind {
	case renewalRenew:
		call.Path = append(call.Path, before.tracking, "renewals")
		body.CertType, body.QueueForApproval = "", nil
	case renewalReissue:
		call.Path = append(call.Path, before.tracking, "reissues")
		body.CertType, body.QueueForApproval, body.CertExpiryDate = "", nil, ""
	}
	call.Body = body
	var answer certificateResponse
	resp, err := i.client.JSON(ctx, call, &answer)
	if err != nil {
		return issuer.Submission{}, err
	}
	if answer.TrackingID <= 0 {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to the order (HTTP %d) has no tracking id", resp.Status)
	}
	ref[refTracking] = strconv.FormatInt(answer.TrackingID, 10)
	if strings.TrimSpace(answer.EndEntityCert) == "" {
		return issuer.Submission{State: issuer.Pending, Ref: ref, RetryAfter: resp.RetryAfter, Detail: waiting(resp.Status)}, nil
	}
	found, err := deliver(withSerial(ref, answer.SerialNumber), answer.EndEntityCert, answer.ChainCerts)
	if err != nil { // the order is placed: the next poll fetches the certificate
		return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: "Entrust has answered with a certificate that cannot be read"}, nil //nolint:nilerr // as above
	}
	return found, nil
}

// replacing notes in a reference what an order replaces.
func replacing(ref issuer.Ref, before replaced) issuer.Ref {
	ref[refReplaces] = before.tracking
	if before.serial != "" {
		ref[refOld] = before.serial
	}
	return ref
}

func waiting(status int) string {
	if status == http.StatusAccepted {
		return "the request waits for approval at Entrust"
	}
	return ""
}

// mapOrder: of a 403 it is not said whether the user may not order or may not order this.
func mapOrder(e *caclient.StatusError) error {
	switch e.Status {
	case http.StatusForbidden:
		return caclient.Misconfigured("CA_FORBIDDEN", "", "Entrust does not let the API user order this", e)
	case http.StatusNotFound:
		return caclient.Refused("PREVIOUS_NOT_FOUND", e)
	}
	return nil
}

// trackingForm is how tracking ids are written.
var trackingForm = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)

// Poll asks for the order by its tracking id.
func (i *Issuer) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	c, retryAfter, err := i.fetch(ctx, ref[refTracking])
	if err != nil {
		return issuer.Submission{}, err
	}
	found, err := submission(ref, c)
	found.RetryAfter = retryAfter
	return found, err
}

// fetch asks for all that Entrust has of a certificate.
func (i *Issuer) fetch(ctx context.Context, id string) (certificate, time.Duration, error) {
	if !trackingForm.MatchString(id) {
		return certificate{}, 0, issuer.Permanent(issuer.ReasonOrderNotFound, "the reference of the order has no tracking id of Entrust")
	}
	call := caclient.Call{Method: http.MethodGet, Path: []string{"certificates", id}, Map: mapMissing}
	var c certificate
	resp, err := i.client.JSON(ctx, call, &c)
	if err != nil {
		return certificate{}, 0, err
	}
	if c.TrackingID != 0 && strconv.FormatInt(c.TrackingID, 10) != id {
		return certificate{}, 0, i.client.Unusable(call, "the answer is about certificate %d instead of %s", c.TrackingID, id)
	}
	return c, resp.RetryAfter, nil
}

func mapMissing(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(issuer.ReasonOrderNotFound, e)
	}
	return nil
}

// fate is what a status means for an order.
type fate uint8

const (
	open     fate = iota // it may still become a certificate
	made                 // there is a certificate
	ended                // there is none, and will be none
	recalled             // there was one, which is of no use any more
)

// fateOf reads a status. The list is Entrust's own, which says that it may grow: what is not known leaves an order open.
func fateOf(status string) fate {
	switch strings.ToUpper(status) {
	case "ACTIVE", "READY", "REISSUED", "RENEWED", "REISSUING", "RENEWING":
		return made
	case "DECLINED", "FAILED":
		return ended
	case "REVOKED", "DEACTIVATED", "EXPIRED", "SUSPENDED":
		return recalled
	}
	return open // PENDING, PENDING_QUORUM, APPROVED, NA
}

// succeeded tells whether a certificate was renewed or re-issued, or is being so.
func succeeded(status string) bool {
	switch strings.ToUpper(status) {
	case "REISSUED", "RENEWED", "REISSUING", "RENEWING":
		return true
	}
	return false
}

// submission reads a certificate as the state of an order.
func submission(ref issuer.Ref, c certificate) (issuer.Submission, error) {
	old := stillTheOneBefore(ref, c)
	if !old {
		ref = withSerial(ref, c.SerialNumber)
	}
	out := issuer.Submission{State: issuer.Pending, Ref: ref, Detail: "Entrust calls the request " + caclient.Clean(c.Status)}
	switch fateOf(c.Status) {
	case ended:
		out.State = issuer.Rejected
		if c.DeclineReason != "" {
			out.Detail += ": " + caclient.Clean(c.DeclineReason)
		}
	case recalled:
		out.State, out.Detail = issuer.Rejected, "Entrust calls the certificate "+caclient.Clean(c.Status)
		if strings.EqualFold(c.Status, "SUSPENDED") {
			out.State = issuer.Pending // it may be taken back
		}
	case made:
		if strings.TrimSpace(c.EndEntityCert) == "" || old {
			break
		}
		return deliver(ref, c.EndEntityCert, c.ChainCerts)
	case open:
	}
	return out, nil
}

// stillTheOneBefore tells whether a re-issue that keeps the tracking id shows the old certificate yet. The serial number
// tells: a CSR that is used again has the old key. Where the old one's is not known, another key tells at least the one.
func stillTheOneBefore(ref issuer.Ref, c certificate) bool {
	if ref[refReplaces] == "" || ref[refReplaces] != ref[refTracking] {
		return false
	}
	if old := ref[refOld]; old != "" {
		return serialOf(c) == old
	}
	bundle, err := caclient.ParseBundle([]byte(c.EndEntityCert))
	return err == nil && ref[refKey] != "" && bundle.LeafOf(ref[refKey]) == nil
}

// serialOf gives the serial number of a certificate in our form, empty if there is none. The certificate itself knows it
// better than what is said of it.
func serialOf(c certificate) string {
	if bundle, err := caclient.ParseBundle([]byte(c.EndEntityCert)); err == nil {
		return issuer.FormatSerial(bundle[0].SerialNumber)
	}
	ours, _ := canonical(c.SerialNumber)
	return ours
}

// deliver makes the answer of a certificate. The first of the chain may be the certificate once more. What cannot be read is
// asked for again, as it may be whole the next time: the certificate is there and paid for.
func deliver(ref issuer.Ref, leaf string, above []string) (issuer.Submission, error) {
	bundle, err := readAll(append([]string{leaf}, above...))
	if err != nil {
		return issuer.Submission{}, &issuer.RetryError{Message: "Entrust gives a certificate that cannot be read, or a chain", Cause: err}
	}
	out := issuer.Submission{State: issuer.Issued, Ref: ref}
	out.CertificatePEM, out.ChainPEM = bundle.Split(ref[refKey])
	if c := bundle.LeafOf(ref[refKey]); c != nil {
		out.Ref = withSerial(ref, fmt.Sprintf("%X", c.SerialNumber))
	}
	return out, nil
}

// readAll reads certificates, each by itself: beside one that has its armour, another without would be passed over.
func readAll(all []string) (caclient.Bundle, error) {
	var out caclient.Bundle
	for _, each := range all {
		if strings.TrimSpace(each) == "" {
			continue
		}
		read, err := caclient.ParseBundle([]byte(each))
		if err != nil {
			return nil, err
		}
		if out = append(out, read...); len(out) > certcheck.MaxCertificates {
			return nil, fmt.Errorf("there are more than %d certificates", certcheck.MaxCertificates)
		}
	}
	return out, nil
}

// withSerial adds a serial number to a reference, in our form.
func withSerial(ref issuer.Ref, serial string) issuer.Ref {
	ours, ok := canonical(serial)
	if !ok {
		return ref
	}
	ref = maps.Clone(ref)
	ref[refSerial] = ours
	return ref
}

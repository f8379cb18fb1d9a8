// Package entrustgateway gets certificates from a CA behind an Entrust CA Gateway by version 1 of its API. The gateway
// knows its clients by their certificates and stands in front of private CAs (Security Manager, PKI as a Service, Microsoft)
// and, for some customers, of public ones. It is another product than Entrust Certificate Services (package entrustecs).
//
// In practice the gateway answers an enrolment with the certificate. The API also knows the answer "accepted" (201) without
// one, and no public client asks for such an enrolment again: Poll tries all ways that there are (the enrolment itself, the
// certificate by its serial number, the feed of certificate events) and takes none of them for granted.
//
// The gateway offers nothing to look an order up by. One whose reply was lost is found in the feed of certificate events by
// its public key and names (FindOrder). A renewal is a new enrolment.
package entrustgateway

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/connector/issuer/kept"
)

// TypeName is the name of the type in the API.
const TypeName = "entrust-gateway"

// The entries of a Ref.
const (
	refEnrollment  = "enrollment_id"
	refCertificate = "certificate"   // the serial number as the gateway writes it
	refSerial      = "serial_number" // and in our form
	refKey         = "key"           // caclient.KeyID of the order's key
	refSince       = "since"         // when it was enrolled, RFC 3339
	refPage        = "feed_page"     // how far the feed was read for it: the index of a page,
	refEvents      = "feed_events"   // and how many of its events
)

// Issuer is one profile of one CA behind a gateway. It is safe for concurrent use.
type Issuer struct {
	settings Settings
	client   *caclient.Client
	now      func() time.Time

	profile *kept.Value[profile]
	chain   *kept.Value[chain]
	waited  atomic.Bool // an enrolment was only accepted
}

var (
	_ issuer.Issuer        = (*Issuer)(nil)
	_ issuer.Revoker       = (*Issuer)(nil)
	_ issuer.Finder        = (*Issuer)(nil)
	_ issuer.Lister        = (*Issuer)(nil)
	_ issuer.Tester        = (*Issuer)(nil)
	_ issuer.Metered       = (*Issuer)(nil)
	_ issuer.ChainProvider = (*Issuer)(nil)
)

const (
	profileLife = 15 * time.Minute
	chainLife   = 24 * time.Hour
	// For so long the one from before is better than none when the gateway does not answer.
	staleLife = 24 * time.Hour
)

// fieldCertificate is the setting that is at fault when the gateway knows us not.
const fieldCertificate = "client_cert_file"

// New makes an issuer of settings. It reads the files and calls nobody.
func New(s Settings, d issuer.Deps) (*Issuer, error) {
	s.setDefaults()
	i := &Issuer{settings: s, now: d.Clock()}
	i.profile = kept.New(kept.Config[profile]{Now: i.now, Fresh: profileLife, Stale: staleLife, Fetch: i.readProfile})
	i.chain = kept.New(kept.Config[chain]{Now: i.now, Fresh: chainLife, Stale: staleLife, Fetch: i.readChain})
	client, err := caclient.New(caclient.Config{
		BaseURL: s.BaseURL + "/v1", Settings: s.Settings, Identity: []string{s.ClientCertFile, s.ClientID},
		CredentialField: fieldCertificate, ReadError: readError, Authorize: i.authorize,
	}, d)
	if err != nil {
		return nil, err
	}
	i.client = client
	return i, nil
}

// authorize: the client certificate is all that the gateway asks for, but some have clients of clients.
func (i *Issuer) authorize(_ context.Context, h http.Header) error {
	if i.settings.ClientID != "" {
		h.Set("ca-client-id", i.settings.ClientID)
	}
	return nil
}

// Account gives the guard that all calls go through.
func (i *Issuer) Account() *account.Guard { return i.client.Account() }

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{Async: true, Revocation: true, Find: true, List: true, Reasons: reasons()}
}

// call makes the call for something of the CA.
func (i *Issuer) call(method string, path ...string) caclient.Call {
	return caclient.Call{Method: method, Path: append([]string{"certificate-authorities", i.settings.CAID}, path...)}
}

// Submit enrols.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, err
	}
	if err := precheck(r, i.now()); err != nil {
		return issuer.Submission{}, err
	}
	p, err := i.profile.Get(ctx)
	if err != nil {
		return issuer.Submission{}, err
	}
	body, err := newRequest(r, p, i.settings, i.now())
	if err != nil {
		return issuer.Submission{}, err
	}
	ref := issuer.Ref{refKey: caclient.KeyID(r.CSR.PublicKey), refSince: i.now().UTC().Format(time.RFC3339)}
	call := i.call(http.MethodPost, "enrollments")
	call.Body, call.Changes, call.Map = body, true, i.mapEnrollment
	var answer enrollmentResponse
	resp, err := i.client.JSON(ctx, call, &answer)
	if err != nil {
		return issuer.Submission{}, unimplemented(err)
	}
	at := placed(ref, answer.Enrollment)
	if at[refCertificate] == "" && at[refEnrollment] == "" && answer.Enrollment.Body == "" {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to the enrolment (HTTP %d) names neither enrolment nor certificate", resp.Status)
	}
	found, err := i.submission(ctx, ref, answer, resp.RetryAfter)
	if err == nil {
		if found.State == issuer.Pending {
			i.waited.Store(true)
		}
		return found, nil
	}
	// The order is placed, whatever else could not be had: the next poll fetches it.
	if at[refCertificate] == "" && at[refEnrollment] == "" {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to the enrolment names neither enrolment nor certificate: %w", err)
	}
	return issuer.Submission{State: issuer.Pending, Ref: at, Detail: "the certificate is there, and it or the chain above it could not be read yet"}, nil
}

// placed gives the reference of an enrolment. The certificate itself knows its number better than what is said of it.
func placed(ref issuer.Ref, e enrollment) issuer.Ref {
	ref = withCertificate(ref, e.SerialNumber)
	if bundle, err := caclient.ParseBundle([]byte(e.Body)); err == nil {
		if leaf := bundle.LeafOf(ref[refKey]); leaf != nil {
			ref = withCertificate(ref, serialOf(ref, leaf))
		}
	}
	if e.ID != "" && len(e.ID) <= maxText {
		ref[refEnrollment] = e.ID
	}
	return ref
}

// mapEnrollment lets the profile be read anew after a refusal: it may have been changed since.
func (i *Issuer) mapEnrollment(e *caclient.StatusError) error {
	i.profile.Drop()
	if e.Status == http.StatusNotFound {
		return caclient.Misconfigured("CA_NOT_FOUND", "ca_id", "the gateway knows no such CA or no such profile", e)
	}
	return nil
}

// unimplemented: a gateway that says 501 has done nothing and will not.
func unimplemented(err error) error {
	if answer, ok := caclient.AsStatus(err); ok && answer.Status == http.StatusNotImplemented {
		return caclient.Misconfigured("NOT_SUPPORTED", "ca_id", "the gateway does not offer this for the CA", answer)
	}
	return err
}

// Poll looks for the certificate in each way that the reference allows.
func (i *Issuer) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	if !serialForm.MatchString(ref[refCertificate]) && ref[refEnrollment] == "" {
		return issuer.Submission{}, issuer.Permanent(issuer.ReasonOrderNotFound, "the reference of the order names neither enrolment nor certificate of the gateway")
	}
	for _, ask := range []func(context.Context, issuer.Ref) (issuer.Submission, bool, error){i.askCertificate, i.askEnrollment, i.askEvents} {
		found, ok, err := ask(ctx, ref)
		if err != nil || ok {
			return found, err
		}
		if found.Ref != nil { // it says how far it came
			ref = found.Ref
		}
	}
	if ref[refEnrollment] == "" {
		return issuer.Submission{}, issuer.Permanent(issuer.ReasonOrderNotFound, "the gateway has no certificate %s", ref[refCertificate])
	}
	return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: "the gateway shows neither the enrolment nor its certificate"}, nil
}

// askCertificate asks by the serial number.
func (i *Issuer) askCertificate(ctx context.Context, ref issuer.Ref) (issuer.Submission, bool, error) {
	serial := ref[refCertificate]
	if !serialForm.MatchString(serial) {
		return issuer.Submission{}, false, nil
	}
	answer, ok, err := i.fetch(ctx, serial)
	if err != nil || !ok {
		return issuer.Submission{}, false, err
	}
	found, err := i.issued(ctx, ref, answer)
	return found, err == nil, err
}

// fetch asks for a certificate; ok is false when the gateway has none of that number.
func (i *Issuer) fetch(ctx context.Context, serial string) (answer certificateResponse, ok bool, err error) {
	call := i.call(http.MethodGet, "certificates", serial)
	_, err = i.client.JSON(ctx, call, &answer)
	if notThere(err) {
		return certificateResponse{}, false, nil
	}
	if err == nil && answer.Certificate.CertificateData == "" {
		err = i.client.Unusable(call, "the answer for certificate %s holds none", serial)
	}
	return answer, err == nil, err
}

// notThere tells whether the gateway has not got what it was asked for, or does not offer to be asked. A page of something in
// front of the gateway says nothing of what the gateway has.
func notThere(err error) bool {
	answer, ok := caclient.AsStatus(err)
	if !ok {
		return false
	}
	switch answer.Status {
	case http.StatusNotFound, http.StatusGone:
		return !answer.Foreign
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// askEnrollment asks for the enrolment, which gateways may not offer.
func (i *Issuer) askEnrollment(ctx context.Context, ref issuer.Ref) (issuer.Submission, bool, error) {
	if ref[refEnrollment] == "" {
		return issuer.Submission{}, false, nil
	}
	var answer enrollmentResponse
	resp, err := i.client.JSON(ctx, i.call(http.MethodGet, "enrollments", ref[refEnrollment]), &answer)
	switch {
	case notThere(err):
		return issuer.Submission{}, false, nil
	case err != nil:
		return issuer.Submission{}, false, err
	}
	found, err := i.submission(ctx, ref, answer, resp.RetryAfter)
	return found, err == nil, err
}

// submission reads an enrolment.
func (i *Issuer) submission(ctx context.Context, ref issuer.Ref, answer enrollmentResponse, retryAfter time.Duration) (issuer.Submission, error) {
	e := answer.Enrollment
	ref = placed(ref, e)
	if e.Body != "" {
		return i.deliver(ctx, ref, e.Body, e.Chain)
	}
	detail := caclient.Clean(strings.TrimSpace(e.Status + " " + answer.Message.Message))
	if refused(e.Status) {
		return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: detail}, nil
	}
	return issuer.Submission{State: issuer.Pending, Ref: ref, RetryAfter: retryAfter, Detail: detail}, nil
}

// refused tells whether a status without a certificate is final. The API does not list its values.
func refused(status string) bool {
	switch strings.ToUpper(status) {
	case "REJECTED", "DENIED", "DECLINED", "FAILED", "CANCELLED", "CANCELED", "REVOKED", "EXPIRED":
		return true
	}
	return false
}

// withCertificate adds a serial number to a reference.
func withCertificate(ref issuer.Ref, serial string) issuer.Ref {
	ref = maps.Clone(ref)
	if ref == nil {
		ref = issuer.Ref{}
	}
	if ours, ok := canonical(serial); ok {
		ref[refCertificate], ref[refSerial] = serial, ours
	}
	return ref
}

// readProfile asks what subjects the profile wants.
func (i *Issuer) readProfile(ctx context.Context) (profile, error) {
	call := i.call(http.MethodGet, "profiles", i.settings.ProfileID)
	call.Map = func(e *caclient.StatusError) error {
		if e.Status == http.StatusNotFound {
			return caclient.Misconfigured("PROFILE_NOT_FOUND", "profile_id", "the gateway knows no such profile of the CA", e)
		}
		return nil
	}
	var answer profileResponse
	_, err := i.client.JSON(ctx, call, &answer)
	if status, ok := caclient.AsStatus(err); ok && (status.Status == http.StatusForbidden || status.Status == http.StatusNotImplemented) {
		return profile{}, nil // who may enrol need not be allowed to read profiles
	}
	return answer.Profile, err
}

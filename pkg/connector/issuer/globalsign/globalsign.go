// Package globalsign gets certificates from GlobalSign Atlas by its Certificate Management API version 2, which GlobalSign
// calls HVCA. It wants a client certificate and a token, which an API key and secret give for ten minutes.
//
// What may be ordered is decided by the account's validation policy, which is read from the CA: how keys are sent (as a CSR
// or bare), for how long certificates are valid, which names and usages they have. Of a CSR the CA takes nothing but the
// key, so that names and validity are those of the order and not those of the CSR.
//
// The answer to an order is a serial number; the certificate is there a moment later. The CA has no place for a reference
// of ours and shows no CSRs: an order whose reply was lost is found among the certificates issued since by its public key
// and names (FindOrder). A renewal is a new certificate: the CA's own rekey needs nothing that a new one does not, costs
// the same quota, and is tied to a certificate that may have been issued elsewhere.
package globalsign

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
	"github.com/certctl/certctl/pkg/connector/issuer/kept"
	"github.com/certctl/certctl/pkg/secretbox"
)

// TypeName is the name of the type in the API.
const TypeName = "globalsign"

// The entries of a Ref: the serial number as the CA writes it, which is what it has to be asked by, and in our form.
const (
	refCertificate = "certificate"
	refSerial      = "serial_number"
)

// Issuer is one account. It is safe for concurrent use.
type Issuer struct {
	settings Settings
	client   *caclient.Client
	secret   secretbox.Secret
	key      secretbox.Secret
	now      func() time.Time

	token  *kept.Value[string]
	policy *kept.Value[policy]
	chain  *kept.Value[chain]
	seen   *seenKeys
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
	// A token is good for ten minutes; it is renewed before, so that none ends on its way.
	tokenLife = 9 * time.Minute
	// The policy changes when GlobalSign changes the account, the chain when it issues from another CA.
	policyLife = 15 * time.Minute
	chainLife  = 24 * time.Hour
	// For so long the one from before is better than none when the CA does not answer.
	staleLife = 24 * time.Hour
)

// New makes an issuer of settings and secrets. It reads the files and calls nobody.
func New(s Settings, apiKey, apiSecret secretbox.Secret, d issuer.Deps) (*Issuer, error) {
	s.setDefaults()
	i := &Issuer{settings: s, key: apiKey, secret: apiSecret, now: d.Clock(), seen: newSeenKeys()}
	i.token = kept.New(kept.Config[string]{Now: i.now, Fresh: tokenLife, Fetch: i.login})
	i.policy = kept.New(kept.Config[policy]{Now: i.now, Fresh: policyLife, Stale: staleLife, Fetch: i.readPolicy})
	i.chain = kept.New(kept.Config[chain]{Now: i.now, Fresh: chainLife, Stale: staleLife, Fetch: i.readChain})
	client, err := caclient.New(caclient.Config{
		BaseURL: s.BaseURL + "/v2", Settings: s.Settings, Identity: []string{apiKey.Reveal()},
		CredentialField: fieldKey, Secrets: []secretbox.Secret{apiKey, apiSecret}, ReadError: i.readError,
	}, d)
	if err != nil {
		return nil, err
	}
	i.client = client
	return i, nil
}

// Account gives the guard that all calls go through.
func (i *Issuer) Account() *account.Guard { return i.client.Account() }

func capabilities() issuer.Capabilities {
	return issuer.Capabilities{
		Async: true, Revocation: true, OCSP: true, Find: true, List: true, Reasons: reasons(), PendingDeadline: 24 * time.Hour,
	}
}

// Submit orders a certificate. The answer is PENDING: the CA gives the certificate only when it is asked for it.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, err
	}
	if err := precheck(r, i.now()); err != nil {
		return issuer.Submission{}, err
	}
	p, err := i.policy.Get(ctx)
	if err != nil {
		return issuer.Submission{}, err
	}
	body, err := newRequest(r, p, i.settings.Subject, i.now())
	if err != nil {
		return issuer.Submission{}, err
	}
	call := caclient.Call{Method: http.MethodPost, Path: []string{"certificates"}, Body: body, Changes: true, Map: i.mapSubmit}
	resp, err := i.do(ctx, call, nil)
	if err != nil {
		return issuer.Submission{}, err
	}
	ref, ok := refOf(lastSegment(resp.Header.Get("Location")))
	if !ok {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to the order (HTTP %d) names no serial number", resp.Status)
	}
	return issuer.Submission{State: issuer.Pending, Ref: ref, RetryAfter: resp.RetryAfter}, nil
}

// mapSubmit lets the policy be read anew after a refusal: it may have been changed since.
func (i *Issuer) mapSubmit(e *caclient.StatusError) error {
	switch e.Status {
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
		i.policy.Drop()
		return caclient.Refused("CA_POLICY", e)
	case http.StatusForbidden:
		return caclient.Misconfigured("CA_FORBIDDEN", "", "GlobalSign does not let the account order this", e)
	}
	return nil
}

// Poll asks for the certificate.
func (i *Issuer) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	serial := ref[refCertificate]
	if _, ok := refOf(serial); !ok {
		return issuer.Submission{}, issuer.Permanent(issuer.ReasonOrderNotFound, "the reference of the order names no certificate of GlobalSign")
	}
	info, wait, err := i.fetch(ctx, serial)
	if p, ok := issuer.AsPermanent(err); ok && p.Reason == refusedLater {
		return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: p.Message}, nil
	}
	if err != nil {
		return issuer.Submission{}, err
	}
	return i.submission(ctx, ref, info, wait)
}

// refusedLater is the reason of an order that was taken and then refused.
const refusedLater = "ORDER_REFUSED"

// pending says that a certificate is still being made.
type pending struct {
	detail     string
	retryAfter time.Duration
}

// fetch asks for a certificate once; pending is set when it is not there yet.
func (i *Issuer) fetch(ctx context.Context, serial string) (certificateInfo, *pending, error) {
	var raw json.RawMessage
	call := caclient.Call{Method: http.MethodGet, Path: []string{"certificates", serial}, Map: mapMissing}
	resp, err := i.do(ctx, call, &raw)
	if err != nil {
		return certificateInfo{}, nil, err
	}
	if resp.Status == http.StatusAccepted {
		words, _ := readProblem(raw)
		return certificateInfo{}, &pending{detail: caclient.Clean(words), retryAfter: resp.RetryAfter}, nil
	}
	var info certificateInfo
	if json.Unmarshal(raw, &info) != nil || info.Certificate == "" {
		return certificateInfo{}, nil, i.client.Unusable(call, "the answer for certificate %s holds none", serial)
	}
	return info, nil, nil
}

func mapMissing(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(issuer.ReasonOrderNotFound, e)
	}
	if e.Status == http.StatusUnprocessableEntity { // it was refused after it was taken
		return caclient.Refused(refusedLater, e)
	}
	return nil
}

// submission is what the CA has of an order.
func (i *Issuer) submission(ctx context.Context, ref issuer.Ref, info certificateInfo, wait *pending) (issuer.Submission, error) {
	ref, _ = refOf(ref[refCertificate]) // whole, should it have come from somewhere else
	if wait != nil {
		return issuer.Submission{State: issuer.Pending, Ref: ref, RetryAfter: wait.retryAfter, Detail: wait.detail}, nil
	}
	switch strings.ToUpper(info.Status) {
	case statusIssued:
	case statusRevoked:
		return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: "the certificate has been revoked at GlobalSign"}, nil
	default:
		return issuer.Submission{State: issuer.Pending, Ref: ref, Detail: "GlobalSign calls the state of the certificate " + caclient.Clean(info.Status)}, nil
	}
	if _, err := certcheck.ParseBundle([]byte(info.Certificate)); err != nil { // it may be whole the next time, and is paid for
		return issuer.Submission{}, &issuer.RetryError{Message: "GlobalSign gives a certificate that cannot be read", Cause: err}
	}
	if leaf, ok := single([]byte(info.Certificate)); ok && issuer.FormatSerial(leaf.SerialNumber) != ref[refSerial] {
		return issuer.Submission{}, issuer.Permanent("WRONG_CERTIFICATE", "GlobalSign was asked for the certificate with serial number %s and gave %s",
			ref[refSerial], issuer.FormatSerial(leaf.SerialNumber))
	}
	above, err := i.chainOf(ctx, []byte(info.Certificate))
	if err != nil {
		return issuer.Submission{}, err
	}
	return issuer.Submission{State: issuer.Issued, Ref: ref, CertificatePEM: []byte(info.Certificate), ChainPEM: above}, nil
}

// do makes a call with the token, and once more with a new one when the CA does not take it: it may have ended it early.
// A call that was refused for its token has changed nothing.
func (i *Issuer) do(ctx context.Context, call caclient.Call, into any) (*caclient.Response, error) {
	for attempt := 0; ; attempt++ {
		token, err := i.token.Get(ctx)
		if err != nil {
			return nil, err
		}
		call.Header = http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {contentType}}
		if call.Body == nil {
			call.Header.Del("Content-Type")
		}
		resp, err := i.client.JSON(ctx, call, into)
		answer, answered := caclient.AsStatus(err)
		if attempt > 0 || !answered || answer.Status != http.StatusUnauthorized {
			return resp, err
		}
		i.token.DropIf(func(t string) bool { return t == token })
	}
}

// contentType is the one that the API takes.
const contentType = "application/json;charset=utf-8"

// login trades key and secret for a token. It is made on a connection of its own, as a change is: what comes unasked on one
// that is kept is printed by net/http, and a token that was sent twice would be.
func (i *Issuer) login(ctx context.Context) (string, error) {
	call := caclient.Call{
		Method: http.MethodPost, Path: []string{"login"}, Anonymous: true, Map: mapLogin, Changes: true,
		Header: http.Header{"Content-Type": {contentType}},
		Body:   loginRequest{APIKey: i.key.Reveal(), APISecret: i.secret.Reveal()},
	}
	var answer loginResponse
	_, err := i.client.JSON(ctx, call, &answer)
	if err == nil && (len(answer.AccessToken) > maxToken || !tokenForm.MatchString(answer.AccessToken)) {
		err = i.client.Unusable(call, "the answer to the login holds no token")
	}
	if issuer.OutcomeOf(err) == issuer.OutcomeUnknown && err != nil {
		err = issuer.RetryAfter(0, err) // to have logged in changes nothing
	}
	return answer.AccessToken, err
}

const maxToken = 8 << 10

// tokenForm is what can stand in a header (RFC 6750, section 2.1).
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// mapLogin: the CA says the same to a wrong key and to a client certificate that is not the account's; one that it does not
// take at all is refused before it looks at the key.
func mapLogin(e *caclient.StatusError) error {
	switch e.Status {
	case http.StatusForbidden:
		return caclient.Misconfigured("CLIENT_CERTIFICATE_REFUSED", "client_cert_file", "GlobalSign refuses the client certificate", e)
	case http.StatusUnauthorized:
		return caclient.Misconfigured("CA_CREDENTIALS_REFUSED", fieldKey,
			"GlobalSign refuses the API key with its secret, or the client certificate is not that of the account", e)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return caclient.Misconfigured("CA_CREDENTIALS_REFUSED", fieldKey, "GlobalSign cannot read the API key or its secret", e)
	}
	return nil
}

func (i *Issuer) readPolicy(ctx context.Context) (policy, error) {
	call := caclient.Call{Method: http.MethodGet, Path: []string{"validationpolicy"}}
	var raw json.RawMessage
	if _, err := i.do(ctx, call, &raw); err != nil {
		return policy{}, err
	}
	p, err := parsePolicy(raw)
	if err != nil {
		return policy{}, i.client.Unusable(call, "the validation policy cannot be read")
	}
	return p, nil
}

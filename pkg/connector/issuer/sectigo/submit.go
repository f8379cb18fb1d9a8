package sectigo

import (
	"context"
	"encoding/pem"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const (
	day = 24 * time.Hour
	// profileAge is how long the terms of the profile are believed.
	profileAge = 10 * time.Minute
)

// Submit places an order, or replaces the certificate of SubmitRequest.Previous. It is not idempotent.
func (i *Issuer) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	want, err := caclient.CheckTLSServer(ctx, r, i.now(), true)
	if err != nil {
		return issuer.Submission{}, err
	}
	if err := checkCSR(r, want); err != nil {
		return issuer.Submission{}, err
	}
	number, replaced, err := i.replaceable(ctx, r, want)
	if err != nil {
		return issuer.Submission{}, err
	}
	if number != "" {
		return i.replace(ctx, r, want, number, replaced)
	}
	term, err := i.term(ctx, r)
	if err != nil {
		return issuer.Submission{}, err
	}
	return i.enroll(ctx, r, want, term)
}

// checkCSR holds the names of the CSR against the request's, as the CA reads them. The common name is the one by which a lost
// order is looked for.
func checkCSR(r issuer.SubmitRequest, want caclient.TLSServer) error {
	if cn := r.CSR.Subject.CommonName; cn != "" && !strings.EqualFold(cn, want.CommonName) {
		return issuer.Permanent("CSR_NAMES_DIFFER", "Sectigo takes the common name from the CSR, which has %q and not %q", caclient.Clean(cn), want.CommonName)
	}
	for _, name := range r.CSR.DNSNames {
		if !slices.Contains(r.Names.DNSNames, strings.ToLower(name)) {
			return issuer.Permanent("CSR_NAMES_DIFFER", "Sectigo takes names from the CSR, which has %q and should not", caclient.Clean(name))
		}
	}
	if len(r.CSR.IPAddresses)+len(r.CSR.EmailAddresses)+len(r.CSR.URIs) > 0 {
		return issuer.Permanent("CSR_NAMES_DIFFER", "Sectigo takes names from the CSR, which has others than DNS names")
	}
	return nil
}

// worthReplacing goes by the end of the certificate before, which its replacement has too: half of what is asked for has to
// be left. Instances that begin the term anew must not exceed what is asked for either.
func worthReplacing(r issuer.SubmitRequest, want caclient.TLSServer, now time.Time) bool {
	before := r.PreviousCertificate
	whole := before.NotAfter.Sub(before.NotBefore)
	return before.NotAfter.Sub(now) >= r.Lifetime/2 && !now.Add(whole-day).After(want.LatestEnd) && !before.NotAfter.After(want.LatestEnd)
}

// replaceable tells whether the certificate before can be replaced, by its sslId and serial number.
func (i *Issuer) replaceable(ctx context.Context, r issuer.SubmitRequest, want caclient.TLSServer) (number, replaced string, err error) {
	previous := r.Previous[refSSL]
	if !numeric(previous) || r.PreviousCertificate == nil || i.settings.Renewal == RenewalNew {
		return "", "", nil
	}
	if !worthReplacing(r, want, i.now()) {
		return "", "", nil
	}
	d, err := i.details(ctx, previous)
	if p, gone := issuer.AsPermanent(err); gone && p.Reason == orderNotFound {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	replaced = issuer.FormatSerial(r.PreviousCertificate.SerialNumber)
	if plain(d.Status) != "issued" || serial(d.SerialNumber) != replaced {
		return "", "", nil
	}
	return previous, replaced, nil
}

func (i *Issuer) replace(
	ctx context.Context, r issuer.SubmitRequest, want caclient.TLSServer, number, replaced string,
) (issuer.Submission, error) {
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodPost, Path: []string{"ssl", "v1", "replace", number}, Changes: true, Map: refusedOrder,
		Body: replacement{
			CSR: csrPEM(r), Reason: "certctl order " + r.OrderID, CommonName: want.CommonName, SubjectAlternativeNames: want.DNSNames,
		},
	}, nil)
	if err != nil {
		return issuer.Submission{}, err
	}
	ref := issuer.Ref{refSSL: number, refKey: caclient.KeyID(r.CSR.PublicKey), refReplaced: replaced}
	return pending(ref, "the CA has taken the replacement"), nil
}

func csrPEM(r issuer.SubmitRequest) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR.Raw}))
}

// term chooses one of the profile's: the one of the settings, or the longest that is not longer than what is asked for. The
// CA lets certificates end with a day, so that a latest allowed end needs a day of room.
func (i *Issuer) term(ctx context.Context, r issuer.SubmitRequest) (int, error) {
	p, err := i.profileOf(ctx)
	if err != nil {
		return 0, err
	}
	room := r.Lifetime
	if !r.NotAfter.IsZero() {
		room = min(room, r.NotAfter.Sub(i.now())-day)
	}
	if term := i.settings.Term; term != 0 {
		if !slices.Contains(p.Terms, term) {
			return 0, termUnknown(term, p)
		}
		if time.Duration(term)*day > room {
			return 0, issuer.Permanent("LIFETIME_TOO_SHORT", "the issuer's term of %d days is longer than what is asked for", term)
		}
		return term, nil
	}
	best := 0
	for _, term := range p.Terms {
		if time.Duration(term)*day <= room {
			best = max(best, term)
		}
	}
	if best <= 0 {
		return 0, issuer.Permanent("LIFETIME_TOO_SHORT", "no term of the certificate profile (%s days) is as short as what is asked for", list(p.Terms))
	}
	return best, nil
}

func termUnknown(term int, p profile) error {
	return &issuer.PermanentError{
		Fault: issuer.FaultConfiguration, Reason: "CA_TERM_UNKNOWN", Field: "term",
		Message: "the certificate profile has no term of " + strconv.Itoa(term) + " days, but of " + list(p.Terms),
	}
}

func list(terms []int) string {
	out := make([]string, 0, len(terms))
	for _, t := range terms {
		out = append(out, strconv.Itoa(t))
	}
	return caclient.Clean(strings.Join(out, ", "))
}

// profileOf asks for the profile of the settings, once in a while.
func (i *Issuer) profileOf(ctx context.Context) (profile, error) {
	i.mu.Lock()
	if i.profile != nil && i.now().Sub(i.profiled) < profileAge {
		defer i.mu.Unlock()
		return *i.profile, nil
	}
	i.mu.Unlock()
	var all []profile
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodGet, Path: []string{"ssl", "v1", "types"}, MaxBytes: maxList, Map: refusedSettings,
		Query: url.Values{"organizationId": {strconv.FormatInt(i.settings.OrganizationID, 10)}},
	}, &all)
	if err != nil {
		return profile{}, err
	}
	n := slices.IndexFunc(all, func(p profile) bool { return p.ID == i.settings.CertificateProfileID })
	if n < 0 {
		return profile{}, &issuer.PermanentError{
			Fault: issuer.FaultConfiguration, Reason: "CA_PROFILE_UNKNOWN", Field: "certificate_profile_id",
			Message: "the CA has no certificate profile " + strconv.FormatInt(i.settings.CertificateProfileID, 10) + " for the organization",
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.profile, i.profiled = &all[n], i.now()
	return all[n], nil
}

func (i *Issuer) enroll(ctx context.Context, r issuer.SubmitRequest, want caclient.TLSServer, term int) (issuer.Submission, error) {
	s := i.settings
	body := enrollment{
		OrgID: s.OrganizationID, CSR: csrPEM(r), CertType: s.CertificateProfileID, Term: term,
		SubjAltNames: strings.Join(want.DNSNames, ","), NumberServers: 1, ServerType: anyServer, Comments: r.OrderID,
		ExternalRequester: s.ExternalRequester,
	}
	if s.ServerType != nil {
		body.ServerType = *s.ServerType
	}
	for _, name := range slices.Sorted(maps.Keys(s.CustomFields)) {
		body.CustomFields = append(body.CustomFields, customField{Name: name, Value: s.CustomFields[name]})
	}
	call := caclient.Call{
		Method: http.MethodPost, Path: []string{"ssl", "v1", "enroll"}, Body: body, Changes: true, Map: refusedOrder,
	}
	var answer enrolled
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return issuer.Submission{}, err
	}
	if answer.SSLID == "" {
		return issuer.Submission{}, i.client.Unusable(call, "the answer to an order holds no sslId")
	}
	ref := issuer.Ref{refSSL: string(answer.SSLID), refKey: caclient.KeyID(r.CSR.PublicKey)}
	return pending(ref, "the CA has taken the order"), nil
}

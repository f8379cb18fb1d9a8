package entrustgateway

import (
	"context"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// FindOrder looks in the feed of certificate events for a certificate with the order's key and names. Since an enrolment may
// take its time before there is a certificate, "there is none" is said only after the settings' time for that is over.
func (i *Issuer) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := issuer.NotSent(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	if r.Ref[refCertificate] != "" || r.Ref[refEnrollment] != "" {
		found, err := i.Poll(ctx, r.Ref)
		return found, err == nil, err
	}
	key := caclient.KeyID(r.PublicKey)
	if key == "" {
		return issuer.Submission{}, false, issuer.Permanent("PUBLIC_KEY_MISSING", "the gateway has no reference of ours: without its public key an order cannot be looked up")
	}
	s := search{key: key, names: r.Names, since: r.Since, except: r.Previous[refSerial]}
	if _, err := i.look(ctx, &s, place{}, maxPages); err != nil {
		return issuer.Submission{}, false, err
	}
	ref := issuer.Ref{refKey: key, refSince: r.Since.UTC().Format(time.RFC3339)}
	found, ok, err := i.found(ctx, ref, s.best())
	if err != nil || ok {
		return found, ok, err
	}
	if s.unread != nil {
		return issuer.Submission{}, false, &issuer.RetryError{Message: "the gateway tells of certificates that it does not give or that cannot be read: one may be the order's"}
	}
	return issuer.Submission{}, false, i.absent(r)
}

// absent is nil when the gateway never got the order. An enrolment that waits is in no feed: unless the profile's enrolments
// are answered with the certificate, that the feed shows none says nothing, and a human has to look.
func (i *Issuer) absent(r issuer.FindRequest) error {
	if err := i.settled(r); err != nil || i.immediate() {
		return err
	}
	return issuer.Permanent("LOOKUP_NOT_CONCLUSIVE", "LOOKUP_NOT_CONCLUSIVE: the gateway shows no certificate of the order, and an enrolment that waits is shown nowhere: "+
		"look at the CA for an enrolment with the names of this order. If there is one, have it issued, when it is found, or have it refused; "+
		"if there is none or it is refused, cancel this order")
}

// immediate tells whether an enrolment that was taken has its certificate at once: as the settings have it, else as it was
// seen by this process.
func (i *Issuer) immediate() bool {
	if said := i.settings.EnrollmentsAreImmediate; said != nil {
		return *said
	}
	return !i.waited.Load()
}

// settled is nil when the CA has had time enough to show the order.
func (i *Issuer) settled(r issuer.FindRequest) error {
	last := r.Since
	if r.LastSubmitted.After(last) {
		last = r.LastSubmitted
	}
	settle := time.Duration(i.settings.LookupSettleSeconds) * time.Second
	left := min(last.Add(settle).Sub(i.now()), settle)
	if left <= 0 {
		return nil
	}
	return &issuer.RetryError{After: left, Message: fmt.Sprintf("the gateway shows no certificate of the order yet: "+
		"it counts as never placed if that stays so for %s", left.Round(time.Second))}
}

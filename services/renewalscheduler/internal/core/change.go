package core

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// What is wanted of a certificate can change at any time. An order that was placed goes on as it was placed; everything
// before that takes the newest wish, and what was issued for an older one is issued again.

// subject is what an approver decides about: names, issuer, profile and key of the certificate.
func subject(cert *inventoryv1.Certificate) string {
	return subjectOf(&issuancev1.SubmitOrderRequest{
		IssuerId: cert.GetIssuerId(), ProfileId: cert.GetProfileId(), Names: namesOf(cert), KeyAlgorithm: cert.GetKeyAlgorithm(),
	})
}

func subjectOf(r *issuancev1.SubmitOrderRequest) string {
	h := sha256.New()
	put := func(values ...string) {
		for _, v := range values {
			_, _ = fmt.Fprintf(h, "%d:%s,", len(v), v)
		}
		_, _ = h.Write([]byte{'\n'})
	}
	n := r.GetNames()
	put(n.GetCommonName(), r.GetIssuerId(), r.GetProfileId(), r.GetKeyAlgorithm().String())
	for _, names := range [][]string{n.GetDnsNames(), n.GetIpAddresses(), n.GetEmailAddresses(), n.GetUris()} {
		put(slices.Sorted(slices.Values(names))...)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// orderRequest is what an order is placed for, as it is stored before the order is.
func orderRequest(cert *inventoryv1.Certificate) ([]byte, error) {
	b, err := proto.Marshal(&issuancev1.SubmitOrderRequest{
		IssuerId: cert.GetIssuerId(), ProfileId: cert.GetProfileId(), Names: namesOf(cert), KeyAlgorithm: cert.GetKeyAlgorithm(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	return b, nil
}

// orderOf reads what a key's order was placed for. An order from before that was stored is for what the certificate is.
func orderOf(k *store.Key, cert *inventoryv1.Certificate) (*issuancev1.SubmitOrderRequest, error) {
	stored := k.OrderRequest
	if len(stored) == 0 {
		var err error
		if stored, err = orderRequest(cert); err != nil {
			return nil, err
		}
	}
	r := &issuancev1.SubmitOrderRequest{}
	if err := proto.Unmarshal(stored, r); err != nil {
		return nil, fmt.Errorf("decode order %s: %w", k.OrderID, err)
	}
	return r, nil
}

// orderedSubject is the subject that a key's order was placed for; empty: not known.
func orderedSubject(k *store.Key) (string, error) {
	if len(k.OrderRequest) == 0 {
		return "", nil
	}
	r, err := orderOf(k, nil)
	if err != nil {
		return "", err
	}
	return subjectOf(r), nil
}

// wish notes on a locked plan what is wanted, and by whom. It tells whether something else was wanted before.
func wish(p *store.Plan, cert *inventoryv1.Certificate, by string) (changed bool) {
	is := subject(cert)
	if p.Subject == is {
		return false
	}
	changed = p.Subject != ""
	p.Subject, p.SubjectBy = is, by
	return changed
}

// told postpones a job whose certificate is another than inventory has told of: who made it so must be known before anybody
// can approve it. A plan that is older than this knowledge tells nothing.
func (w *work) told(ctx context.Context, is string) error {
	p, err := w.store.Plan(ctx, w.job.CertificateID)
	if err != nil {
		return err
	}
	if p.Subject == is || p.Subject == "" && !p.NotAfter.IsZero() {
		return nil
	}
	return &postponed{errs.New(errs.Unavailable, "CHANGE_NOT_TOLD", "certificate %s has just been changed, and who did it is not known yet", w.job.CertificateID)}
}

// reissue opens the job that makes all keys of a certificate anew.
func (c *Core) reissue(ctx context.Context, tx *store.Tx, p *store.Plan, by string) error {
	policy, err := policyOf(ctx, tx, p.PolicyID)
	if err != nil {
		return err
	}
	_, err = c.openJob(ctx, tx, opening{kind: kindFor(p), certificateID: p.CertificateID, requestedBy: by, policy: policy, cause: p.Reissue})
	return err
}

// planAfterSuccess stores what a completed job means for the plan. If something else is wanted by now, that is issued next.
func (c *Core) planAfterSuccess(ctx context.Context, tx *store.Tx, p *store.Plan, j *store.Job) error {
	p.Failures, p.RetryTime, p.Reopen = 0, time.Time{}, false
	current, err := issuedFor(ctx, tx, j, p.Subject)
	if err != nil {
		return err
	}
	if current {
		p.SubjectBy, p.Reissue = "", ""
	} else {
		p.Reissue = cmp.Or(p.Reissue, "what is wanted has changed while it was issued")
	}
	if err := c.refreshPlan(ctx, tx, p); err != nil || current || closed(p.CertificateStatus) {
		return err
	}
	return c.reissue(ctx, tx, p, cmp.Or(p.SubjectBy, system))
}

// issuedFor tells whether all orders of a job were placed for the subject.
func issuedFor(ctx context.Context, tx *store.Tx, j *store.Job, wanted string) (bool, error) {
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return false, err
	}
	for _, k := range keys {
		is, err := orderedSubject(k)
		if err != nil {
			return false, err
		}
		if is != "" && wanted != "" && is != wanted {
			return false, nil
		}
	}
	return true, nil
}

// change is what has become of a certificate that may have an open job.
type change struct {
	certificateID string
	by            string
	// subject tells that names, issuer, profile or key are others now.
	subject bool
	// asked tells that by has asked for what is wanted now, as whoever changes the subject has, too.
	asked bool
	// agents have no version yet.
	agents []string
}

// followOpen brings the open job of a certificate to what the certificate is now; store.ErrNotFound when there is none.
func (c *Core) followOpen(ctx context.Context, tx *store.Tx, ch change) error {
	open, err := tx.OpenJob(ctx, ch.certificateID)
	if err != nil {
		return err
	}
	j, err := tx.LockJob(ctx, open.ID)
	if err != nil {
		return err
	}
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return err
	}
	if err := c.addAgents(ctx, tx, keys, ch.agents); err != nil {
		return err
	}
	if ch.subject || ch.asked {
		if j.ApprovedBy == ch.by {
			j.ApprovedBy, j.ApprovalComment = "", ""
		}
		j.Askers = withAsker(j.Askers, ch.by)
	}
	if ch.subject {
		if err := c.startOver(ctx, tx, j, keys); err != nil {
			return err
		}
	}
	waits := j.State == store.Pending && !ch.subject && !ch.asked // its pause after a failure goes on
	if j.State != store.AwaitingApproval && !waits {
		j.DueTime = c.now()
	}
	tx.Changed(store.Jobs)
	return tx.SaveJob(ctx, j)
}

// addAgents adds keys to the keys of an open job. A job without any yet will find the agents itself when it starts.
func (c *Core) addAgents(ctx context.Context, tx *store.Tx, keys []*store.Key, agents []string) error {
	if len(keys) == 0 {
		return nil
	}
	for _, agent := range agents {
		if err := tx.AddKeys(ctx, &store.Key{JobID: keys[0].JobID, AgentID: agent, State: store.KeyAwaitingCSR}); err != nil {
			return err
		}
	}
	return nil
}

// startOver begins the keys of a locked job anew that no order was placed for: tasks and CSRs are for what was wanted before.
func (c *Core) startOver(ctx context.Context, tx *store.Tx, j *store.Job, keys []*store.Key) error {
	for _, k := range keys {
		switch k.State {
		case store.KeyAwaitingCSR:
			if k.AgentID == "" && k.CsrPEM != "" {
				continue // a caller's CSR is never lost: issuance says if it does not fit any more
			}
			if err := c.takeBack(ctx, tx, j, k); err != nil {
				return err
			}
			*k = store.Key{JobID: k.JobID, AgentID: k.AgentID, State: store.KeyAwaitingCSR}
		case store.KeyFailed:
			k.KeepCSR = false
		case store.KeyAwaitingCA, store.KeyIssued, store.KeyDone:
			continue
		}
		if err := tx.SaveKey(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// takeBack has the task of a key cancelled that has not brought a CSR.
func (c *Core) takeBack(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key) error {
	if k.State != store.KeyAwaitingCSR || k.TaskID == "" || k.CsrPEM != "" {
		return nil
	}
	return tx.AddCancellation(ctx, k.TaskID, j.ID, c.now())
}

// left tells whether a key is nobody's any more: its holder no longer serves the certificate, and no order was placed. A CSR
// that a caller has posted is wanted, whoever else holds keys.
func (w *work) left(k *store.Key) bool {
	open := k.State == store.KeyAwaitingCSR || k.State == store.KeyFailed
	posted := k.AgentID == "" && k.CsrPEM != ""
	return open && !posted && !slices.Contains(holdersOf(w.rec), k.AgentID)
}

// dropLeft takes the keys off a locked job that are nobody's. When none is left, the job makes those that the certificate
// has now.
func (w *work) dropLeft(ctx context.Context, tx *store.Tx, j *store.Job, keys []*store.Key) ([]*store.Key, error) {
	kept := make([]*store.Key, 0, len(keys))
	for _, k := range keys {
		if !w.left(k) {
			kept = append(kept, k)
			continue
		}
		if err := errors.Join(w.takeBack(ctx, tx, j, k), tx.DeleteKey(ctx, k)); err != nil {
			return nil, err
		}
	}
	if len(kept) > 0 {
		return kept, nil
	}
	for _, agent := range holdersOf(w.rec) {
		kept = append(kept, &store.Key{JobID: j.ID, AgentID: agent, State: store.KeyAwaitingCSR})
	}
	return kept, tx.AddKeys(ctx, kept...)
}

// agentRetired is why the task of a retired agent has ended, and what explain says when nobody is left.
const agentRetired = "AGENT_RETIRED"

// forgetRetired takes the key of an agent that was retired off a job that makes keys for others too.
func (c *Core) forgetRetired(ctx context.Context, tx *store.Tx, k *store.Key, e *inventoryv1.TaskFinished) (bool, error) {
	if e.GetProblem().GetReason() != agentRetired {
		return false, nil
	}
	keys, err := tx.Keys(ctx, k.JobID)
	if err != nil || len(keys) < 2 {
		return false, err
	}
	return true, tx.DeleteKey(ctx, k)
}

// versionRevoked has a version replaced that was revoked while it was in use.
func (c *Core) versionRevoked(ctx context.Context, tx *store.Tx, e *inventoryv1.CertificateChanged) error {
	by := cmp.Or(e.GetActor().GetId(), system)
	p, err := c.ensurePlan(ctx, tx, e.GetCertificate(), by)
	if err != nil || p.State == store.PlanEnded || closed(e.GetCertificate().GetStatus().String()) {
		return err
	}
	keys, err := tx.PlanKeys(ctx, p.CertificateID)
	if err != nil {
		return err
	}
	used := revokedInUse(keys, e.GetRevokedVersions())
	if len(used) == 0 {
		return nil
	}
	p.Reissue = "version " + strings.Join(used, ", ") + " was revoked by " + by
	if err := c.refreshPlan(ctx, tx, p); err != nil {
		return err
	}
	err = c.reissue(onBehalf(ctx, e.GetActor()), tx, p, by)
	if errors.Is(err, store.ErrOpen) {
		return nil // a job is on its way to a new version
	}
	return err
}

func revokedInUse(keys []store.PlanKey, revoked []*inventoryv1.RevokedVersion) []string {
	var out []string
	for _, r := range revoked {
		if slices.ContainsFunc(keys, func(k store.PlanKey) bool { return k.Version == r.GetVersion() }) {
			out = append(out, fmt.Sprint(r.GetVersion()))
		}
	}
	return out
}

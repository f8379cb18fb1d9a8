package globalsign

import (
	"context"
	"net/http"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// Test logs in anew, reads the account's policy, and tells when the quota is used up or the policy cannot be served.
func (i *Issuer) Test(ctx context.Context) error {
	i.token.Drop()
	i.policy.Drop()
	p, err := i.policy.Get(ctx)
	if err != nil {
		return i.client.TestError(err)
	}
	if p.KeySignature == required && p.KeyFormat != formatPKCS10 || p.KeyFormat != "" && p.KeyFormat != formatPKCS8 && p.KeyFormat != formatPKCS10 {
		return p.check(nil)
	}
	if err := i.testQuota(ctx); err != nil {
		return err
	}
	return i.client.TestError(nil) // calls succeed with files that were replaced by ones that cannot be used
}

// testQuota: an account without a quota, or a user who may not see it, is none of our business.
func (i *Issuer) testQuota(ctx context.Context) error {
	var left counter
	call := caclient.Call{Method: http.MethodGet, Path: []string{"quotas", "issuance"}}
	_, err := i.do(ctx, call, &left)
	if answer, ok := caclient.AsStatus(err); ok && (answer.Status == http.StatusNotFound || answer.Status == http.StatusForbidden) {
		return nil
	}
	if err != nil {
		return i.client.TestError(err)
	}
	if left.Value != nil && *left.Value <= 0 {
		return issuer.Misconfigured("QUOTA_EXHAUSTED", "the account's quota of certificates is used up: GlobalSign issues none until it is raised")
	}
	return nil
}

package entrustgateway

import (
	"context"
	"net/http"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// Test asks for the CA and for the profile.
func (i *Issuer) Test(ctx context.Context) error {
	call := i.call(http.MethodGet)
	call.Map = func(e *caclient.StatusError) error {
		if e.Status == http.StatusNotFound && !e.Foreign && e.Code != "" {
			return caclient.Misconfigured("CA_NOT_FOUND", "ca_id", "the gateway knows no such CA", e)
		}
		return nil
	}
	var answer caResponse
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return i.testError(err)
	}
	i.profile.Drop()
	if _, err := i.profile.Get(ctx); err != nil {
		return i.testError(err)
	}
	return i.client.TestError(nil) // calls succeed with files that were replaced by ones that cannot be used
}

// testError keeps what names a setting already.
func (i *Issuer) testError(err error) error {
	if p, ok := issuer.AsPermanent(err); ok && p.Field == "ca_id" || ok && p.Field == "profile_id" {
		return err
	}
	return i.client.TestError(err)
}

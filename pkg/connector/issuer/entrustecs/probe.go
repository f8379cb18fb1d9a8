package entrustecs

import (
	"context"
	"net/http"
	"strings"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// Test asks for the organizations of the account, which have to include the settings' client and organization, and tells
// when the product is used up.
func (i *Issuer) Test(ctx context.Context) error {
	var answer organizationsResponse
	if _, err := i.client.JSON(ctx, caclient.Call{Method: http.MethodGet, Path: []string{"organizations"}}, &answer); err != nil {
		return i.client.TestError(err)
	}
	if err := i.testClient(answer.Organizations); err != nil {
		return err
	}
	if err := i.testInventory(ctx); err != nil {
		return err
	}
	return i.client.TestError(nil) // calls succeed with files that were replaced by ones that cannot be used
}

func (i *Issuer) testClient(all []organization) error {
	client, named, approved := false, i.settings.Organization == "", false
	for _, o := range all {
		if o.ClientID != i.settings.ClientID {
			continue
		}
		client = true
		if i.settings.Organization == "" || strings.EqualFold(o.Name, i.settings.Organization) {
			named = true
			approved = approved || strings.EqualFold(o.VerificationStatus, organizationApproved)
		}
	}
	switch {
	case !client:
		return misconfigured("CLIENT_NOT_FOUND", "client_id", "the account has no such client, or the API user may not see it")
	case !named:
		return misconfigured("ORGANIZATION_NOT_FOUND", "organization", "the client has no such organization")
	case !approved:
		return misconfigured("ORGANIZATION_NOT_APPROVED", "organization", "Entrust has not verified the organization of the client, or not any more")
	}
	return nil
}

// testInventory: an account without inventories, or a user who may not see them, is none of our business.
func (i *Issuer) testInventory(ctx context.Context) error {
	var answer inventoriesResponse
	_, err := i.client.JSON(ctx, caclient.Call{Method: http.MethodGet, Path: []string{"inventories"}}, &answer)
	if status, ok := caclient.AsStatus(err); ok && (status.Status == http.StatusNotFound || status.Status == http.StatusForbidden) {
		return nil
	}
	if err != nil {
		return i.client.TestError(err)
	}
	counted, left := false, 0
	for _, each := range answer.Inventories {
		if n := each.RemainingCount; n != nil && (each.ProductType == i.settings.CertType || each.ProductType == flexInventory) {
			counted, left = true, left+max(*n, 0)
		}
	}
	if counted && left == 0 {
		return misconfigured("INVENTORY_EXHAUSTED", "cert_type", "the account's inventory of this product is used up")
	}
	return nil
}

func misconfigured(reason, field, message string) error {
	return &issuer.PermanentError{Fault: issuer.FaultConfiguration, Reason: reason, Field: field, Message: message}
}

package digicert

import (
	"context"
	"net/http"
	"strconv"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// Test asks whether the key is known and whether the organisation, the product and the container of the settings are there.
func (i *Issuer) Test(ctx context.Context) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	var user struct {
		ID id `json:"id"`
	}
	whoami := caclient.Call{Method: http.MethodGet, Path: []string{"user", "me"}}
	if _, err := i.client.JSON(ctx, whoami, &user); err != nil {
		return i.client.TestError(err)
	}
	if user.ID == "" {
		return i.client.Unusable(whoami, "the CA does not say whose the API key is")
	}
	s := i.settings
	for _, have := range []struct{ field, kind, name string }{
		{"product_name_id", "product", s.ProductNameID},
		{"organization_id", "organization", number(s.OrganizationID)},
		{"container_id", "container", number(s.ContainerID)},
	} {
		if err := i.has(ctx, have.field, have.kind, have.name); err != nil {
			return err
		}
	}
	return i.client.TestError(nil) // calls succeed with files that were replaced by ones that cannot be used
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func (i *Issuer) has(ctx context.Context, field, kind, name string) error {
	if name == "" {
		return nil
	}
	_, err := i.client.JSON(ctx, caclient.Call{
		Method: http.MethodGet, Path: []string{kind, name},
		Map: func(e *caclient.StatusError) error {
			switch e.Status {
			case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound:
				return caclient.Misconfigured("CA_HAS_NO_SUCH_"+upper(kind), field, "the CA shows this API key no "+kind+" "+name, e)
			}
			return nil
		},
	}, nil)
	return err
}

func upper(kind string) string {
	switch kind {
	case "product":
		return "PRODUCT"
	case "organization":
		return "ORGANIZATION"
	default:
		return "CONTAINER"
	}
}

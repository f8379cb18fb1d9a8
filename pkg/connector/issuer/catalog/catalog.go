// Package catalog is the list of issuer types that certctl comes with. Programs take it from here, or assemble their
// own; it stands apart so that the connectors can import package issuer.
package catalog

import (
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuer/sectigo"
)

// Types gives all issuer types.
func Types() issuer.Types {
	return issuer.Types{local.Type(), digicert.Type(), sectigo.Type(), globalsign.Type(), entrustgateway.Type(), entrustecs.Type()}
}

// Package catalog is the list of issuer types that certctl comes with. Programs take it from here, or assemble their
// own; it stands apart so that the connectors can import package issuer.
package catalog

import (
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
)

// Types gives all issuer types.
func Types() issuer.Types {
	return issuer.Types{local.Type()}
}

// Package openapi holds the generated description of the REST API (OpenAPI 2).
package openapi

import _ "embed"

// JSON is the description of all paths under /api/v1.
//
//go:embed certctl.swagger.json
var JSON []byte

package torture_test

import (
	"maps"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuer/sectigo"
)

// issuersPerCA share one account at each CA, as the issuers of several teams do.
const issuersPerCA = 4

// timeout is how many seconds a call may take, and settle after how many an order that is in no list of the CA is not there.
// A CA may get an order for as long as the call takes, and shows it some time after that.
const timeout, settle = 2, 5

// connector is a type of issuer with its CA.
type connector struct {
	ca       string
	typ      issuer.Type
	settings func(*casimulator.Simulator, casimulator.Addresses) map[string]any
	// late says that the CA shows certificates and not orders: what it has accepted and not made yet cannot be found there, so
	// that it has to be made before settle is over.
	late bool
}

func connectors() []connector {
	return []connector{
		{ca: casimulator.DigiCert, typ: digicert.Type(), settings: digicertSettings},
		{ca: casimulator.Sectigo, typ: sectigo.Type(), settings: sectigoSettings},
		{ca: casimulator.GlobalSign, typ: globalsign.Type(), settings: globalsignSettings, late: true},
		{ca: casimulator.EntrustGateway, typ: entrustgateway.Type(), settings: gatewaySettings, late: true},
		{ca: casimulator.EntrustECS, typ: entrustecs.Type(), settings: ecsSettings},
	}
}

func connectorOf(ca string) connector {
	for _, c := range connectors() {
		if c.ca == ca {
			return c
		}
	}
	panic("no such CA: " + ca)
}

func types() issuer.Types {
	var out issuer.Types
	for _, c := range connectors() {
		out = append(out, c.typ)
	}
	return out
}

// settings are those of a CA, with limits that hold nobody up.
func (c connector) config(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	s := map[string]any{
		"ca_file": sim.CAFile(), "timeout_seconds": timeout, "lookup_settle_seconds": settle,
		"requests_per_second": 1000, "burst": 10000, "max_concurrent_requests": 1000,
	}
	maps.Copy(s, c.settings(sim, at))
	return s
}

func digicertSettings(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	k := sim.Credentials()
	return map[string]any{
		"base_url": at.URL(casimulator.DigiCert) + "/services/v2", "product_name_id": "ssl_basic", "organization_id": k.DigiCertOrganization,
		"skip_approval": true, "api_key": k.DigiCertAPIKey,
	}
}

func sectigoSettings(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	k := sim.Credentials()
	return map[string]any{
		"base_url": at.URL(casimulator.Sectigo) + "/api", "login": k.SectigoLogin, "customer_uri": k.SectigoCustomerURI,
		"organization_id": k.SectigoOrganization, "certificate_profile_id": k.SectigoCertType, "password": k.SectigoPassword,
		"replacement_settle_seconds": settle,
	}
}

func globalsignSettings(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	cert, key := sim.ClientCertificate()
	k := sim.Credentials()
	return map[string]any{
		"base_url": at.URL(casimulator.GlobalSign) + "/v2", "client_cert_file": cert, "client_key_file": key,
		"api_key": k.GlobalSignAPIKey, "api_secret": k.GlobalSignAPISecret,
	}
}

func gatewaySettings(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	cert, key := sim.ClientCertificate()
	k := sim.Credentials()
	return map[string]any{
		"base_url": at.URL(casimulator.EntrustGateway), "client_cert_file": cert, "client_key_file": key,
		"ca_id": k.EntrustGatewayCA, "profile_id": k.EntrustGatewayProfile,
		// The scripts never lose the reply of an enrolment that waits: nobody could tell of it.
		"enrollments_are_immediate": true,
	}
}

func ecsSettings(sim *casimulator.Simulator, at casimulator.Addresses) map[string]any {
	k := sim.Credentials()
	return map[string]any{
		"base_url": at.URL(casimulator.EntrustECS) + "/enterprise/v2", "username": k.EntrustECSUser, "cert_type": "PRIVATE_SSL",
		"requester_name": "Ada Example", "requester_email": "ada@example.com", "requester_phone": "555 0100", "api_key": k.EntrustECSKey,
	}
}

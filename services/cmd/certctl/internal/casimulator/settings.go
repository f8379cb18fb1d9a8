package casimulator

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"

	simulator "github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/disk"
)

// setting is what one issuer of certctl needs.
type setting struct {
	ca, title string
	config    map[string]any
}

// lookupSettle is how many seconds an order whose reply was lost may take to appear in the CA's list: none here.
const lookupSettle = 1

// settings are for each CA. The names of the fields are those of certctl's issuers.
func settings(sim *simulator.Simulator, at simulator.Addresses, hosts []string) []setting {
	c := sim.Credentials()
	certificate, key := sim.ClientCertificate()
	base := func(ca, path string) map[string]any {
		return map[string]any{
			"base_url": "https://" + reachable(at.CAs, hosts) + "/" + ca + path, "ca_file": sim.CAFile(), "lookup_settle_seconds": lookupSettle,
		}
	}
	digicert := base(simulator.DigiCert, "/services/v2")
	digicert["api_key"], digicert["organization_id"] = c.DigiCertAPIKey, c.DigiCertOrganization
	digicert["product_name_id"], digicert["skip_approval"] = "ssl_basic", true

	sectigo := base(simulator.Sectigo, "/api")
	sectigo["login"], sectigo["password"], sectigo["customer_uri"] = c.SectigoLogin, c.SectigoPassword, c.SectigoCustomerURI
	sectigo["organization_id"], sectigo["certificate_profile_id"] = c.SectigoOrganization, c.SectigoCertType

	globalsign := base(simulator.GlobalSign, "/v2")
	globalsign["api_key"], globalsign["api_secret"] = c.GlobalSignAPIKey, c.GlobalSignAPISecret
	globalsign["client_cert_file"], globalsign["client_key_file"] = certificate, key

	gateway := base(simulator.EntrustGateway, "/v1")
	gateway["ca_id"], gateway["profile_id"] = c.EntrustGatewayCA, c.EntrustGatewayProfile
	gateway["client_cert_file"], gateway["client_key_file"] = certificate, key

	ecs := base(simulator.EntrustECS, "/enterprise/v2")
	ecs["username"], ecs["api_key"] = c.EntrustECSUser, c.EntrustECSKey
	ecs["client_id"], ecs["organization"], ecs["cert_type"] = c.EntrustECSClient, c.EntrustECSOrganization, "STANDARD_SSL"
	ecs["requester_name"], ecs["requester_email"], ecs["requester_phone"] = "Jo Example", "jo@example.com", "+1 555 0100"

	return []setting{
		{simulator.DigiCert, "DigiCert", digicert}, {simulator.Sectigo, "Sectigo", sectigo}, {simulator.GlobalSign, "GlobalSign", globalsign},
		{simulator.EntrustGateway, "Entrust CA Gateway", gateway}, {simulator.EntrustECS, "Entrust Certificate Services", ecs},
	}
}

// reachable is an address that a client can use: one that listens everywhere is reached by the first name that was given for
// it, or by localhost.
func reachable(address string, hosts []string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	switch {
	case len(hosts) > 0:
		host = hosts[0]
	case net.ParseIP(host).IsUnspecified():
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

func (s setting) json() ([]byte, error) {
	text, err := json.MarshalIndent(s.config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode settings of %s: %w", s.ca, err)
	}
	return append(text, '\n'), nil
}

// path of the file with the settings, in the directory as the user named it.
func (s setting) path(dir string) string { return filepath.Join(dir, s.ca+".json") }

// command connects certctl to the CA.
func (s setting) command(dir string) string {
	return fmt.Sprintf("certctl issuers create --id %[1]s --name %[2]s --type %[1]s --config %[3]s", s.ca, quote(s.title), quote("@"+s.path(dir)))
}

// quote a word for a shell, if it needs that.
func quote(word string) string {
	if !strings.ContainsFunc(word, func(r rune) bool { return strings.ContainsRune(" '\"\\$`&|;<>()*?[]#~!{}", r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func write(dir string, all []setting) error {
	for _, s := range all {
		text, err := s.json()
		if err != nil {
			return err
		}
		if err := disk.Write(s.path(dir), text, 0o600); err != nil {
			return fmt.Errorf("keep settings: %w", err)
		}
	}
	return nil
}

// introduce says to somebody new what there is.
func introduce(w io.Writer, sim *simulator.Simulator, at simulator.Addresses, o options, all []setting) error {
	certificate, key := sim.ClientCertificate()
	var b strings.Builder
	fmt.Fprintf(&b, `CA simulator: nothing here is trusted by anybody, and nothing is billed.

  CAs          https://%s
  its CA       %s
  client pair  %s
               %s
  control API  http://%s/control/v1 (orders, requests, violations, faults)
  orders in    %s

Settings for certctl, which are in files too:
`, reachable(at.CAs, o.hosts), sim.CAFile(), certificate, key, at.Control, filepath.Dir(sim.CAFile()))
	for _, s := range all {
		text, err := s.json()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n%s\n%s%s\n", s.title, text, s.command(o.data))
	}
	b.WriteString("\nCtrl-C ends it; the orders stay.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

package sectigo

import (
	"net/http"
	"strconv"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

const orderNotFound = issuer.ReasonOrderNotFound

func codeOf(e *caclient.StatusError) (int, bool) {
	code, err := strconv.Atoi(e.Code)
	return code, err == nil
}

// refusal maps what the API says to all calls. Its codes mean little beside a status of 404: that there is no such order.
func refusal(e *caclient.StatusError) error {
	if e.Status == http.StatusNotFound {
		return caclient.Refused(orderNotFound, e)
	}
	code, known := codeOf(e)
	if !known {
		return nil
	}
	switch code {
	case -410, -429:
		return caclient.Misconfigured("CA_CUSTOMER_UNKNOWN", "customer_uri", "the CA does not know the customer", e)
	case -3, -25, -37:
		return caclient.Misconfigured("CA_ACCESS_DENIED", "", "the login may not do this at the CA", e)
	case -124:
		return caclient.Refused(orderNotFound, e)
	}
	return nil
}

// refusedOrder maps the codes for requests of certificates.
func refusedOrder(e *caclient.StatusError) error {
	if err := refusedSettings(e); err != nil {
		return err
	}
	code, _ := codeOf(e)
	switch code {
	case -9, -10, -11, -13, -78, -138, -141, -170, -194:
		return caclient.Refused("CSR_REFUSED", e)
	case -107, -707, -737:
		return caclient.Refused("DOMAIN_NOT_VALIDATED", e)
	// Trouble inside, and with the CA behind SCM ("not available now"): SCM may have stored the request before it found out.
	case -1, -2, -65, -129, -140, -195:
		return issuer.UnknownOutcome(nil, e)
	}
	return nil
}

// refusedSettings maps the codes that name a setting.
func refusedSettings(e *caclient.StatusError) error {
	code, _ := codeOf(e)
	switch code {
	case -36:
		return caclient.Misconfigured("CA_TERM_REFUSED", "term", "the CA refuses the term", e)
	case -39, -111:
		return caclient.Misconfigured("CA_PROFILE_UNKNOWN", "certificate_profile_id", "the CA has no such certificate profile", e)
	case -35:
		return caclient.Misconfigured("CA_SERVER_TYPE_REFUSED", "server_type", "the CA refuses the kind of server", e)
	case -62, -64, -135:
		return caclient.Misconfigured("CA_CUSTOM_FIELDS_REFUSED", "custom_fields", "the CA refuses the custom fields", e)
	case -639:
		return caclient.Misconfigured("CA_ORGANIZATION_UNKNOWN", "organization_id", "the CA has no such organization", e)
	}
	return nil
}

// notReady tells an issued certificate that cannot be fetched yet from one that never can.
func notReady(e *caclient.StatusError) bool {
	code, known := codeOf(e)
	if !known {
		return false
	}
	switch code {
	case 0, -1400, -183, -103, -109:
		return true
	}
	return false
}

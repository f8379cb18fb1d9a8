package entrustgateway

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/requestcheck"
)

// maxCommonName is ub-common-name of RFC 5280, appendix A.1.
const maxCommonName = 64

// precheck refuses what needs no look at the profile.
func precheck(r issuer.SubmitRequest, now time.Time) error {
	if err := requestcheck.Check(r); err != nil {
		return err
	}
	_, err := requestcheck.End(r, now)
	return err
}

// newRequest makes the enrolment of an order. Key usages are the profile's.
func newRequest(r issuer.SubmitRequest, p profile, s Settings, now time.Time) (enrollmentRequest, error) {
	end, err := requestcheck.End(r, now)
	if err != nil {
		return enrollmentRequest{}, err
	}
	subject, err := subjectVariables(r.Names, p, s.SubjectVariables)
	if err != nil {
		return enrollmentRequest{}, err
	}
	return enrollmentRequest{
		ProfileID:        s.ProfileID,
		RequiredFormat:   requiredFormat{Format: formatX509},
		CSR:              base64.StdEncoding.EncodeToString(r.CSR.Raw),
		SubjectVariables: subject,
		SubjectAltNames:  altNames(r.Names),
		Details:          requestDetails{ValidityPeriod: validityPeriod(s.ValidityForm, now, end)},
		Properties:       properties(r.OrderID, s),
	}, nil
}

// validityPeriod writes a validity in the form of ISO 8601 that the settings say. An interval ends when the order allows,
// however long the CA takes; a duration is counted by the CA from the time that it issues, for which it gets a minute.
func validityPeriod(form string, now, end time.Time) string {
	now = now.UTC().Truncate(time.Second)
	if form == validityDuration {
		return fmt.Sprintf("PT%dM", max(int64(end.Sub(now)/time.Minute)-1, 1))
	}
	return now.Format(time.RFC3339) + "/" + end.Format(time.RFC3339)
}

// subjectVariables gives the common name by the profile's name for it, where the profile has one, and the settings' own.
func subjectVariables(n certcheck.Names, p profile, fixed map[string]string) ([]typedValue, error) {
	var out []typedValue
	name, wanted := commonNameVariable(p)
	cn := n.CommonName
	if cn == "" && wanted {
		if cn = shortName(n); cn == "" {
			return nil, issuer.Permanent("COMMON_NAME_REQUIRED", "the profile wants a common name, and none of the names is short enough for one")
		}
	}
	if cn != "" && name != "" {
		out = append(out, typedValue{Type: name, Value: cn})
	}
	for _, each := range slices.Sorted(maps.Keys(fixed)) {
		out = append(out, typedValue{Type: each, Value: fixed[each]})
	}
	return out, nil
}

// commonNameVariable gives the profile's name for the common name, none if it has no place for it. A profile that names no
// variables at all is not known well enough: it gets the usual name.
func commonNameVariable(p profile) (name string, required bool) {
	if len(p.SubjectVariables) == 0 {
		return "CN", false
	}
	for _, v := range p.SubjectVariables {
		if strings.EqualFold(v.Name, "CN") || strings.EqualFold(v.Name, "commonName") {
			return v.Name, v.Required
		}
	}
	return "", false
}

func shortName(n certcheck.Names) string {
	for _, name := range append(append([]string{}, n.DNSNames...), n.IPStrings()...) {
		if len(name) <= maxCommonName {
			return name
		}
	}
	return ""
}

// altNames gives the names by the types of RFC 5280, section 4.2.1.6, which are the API's.
func altNames(n certcheck.Names) []typedValue {
	out := make([]typedValue, 0, n.Len())
	add := func(kind string, values []string) {
		for _, v := range values {
			out = append(out, typedValue{Type: kind, Value: v})
		}
	}
	add("dNSName", n.DNSNames)
	add("iPAddress", n.IPStrings())
	add("rfc822Name", n.EmailAddresses)
	add("uniformResourceIdentifier", n.URIs)
	return out
}

func properties(orderID string, s Settings) map[string]string {
	if s.ReferenceProperty == "" {
		return s.Properties
	}
	out := maps.Clone(s.Properties)
	if out == nil {
		out = map[string]string{}
	}
	out[s.ReferenceProperty] = orderID
	return out
}

package entrustgateway

// enrollmentRequest is the body of POST …/enrollments.
type enrollmentRequest struct {
	ProfileID        string            `json:"profileId"`
	RequiredFormat   requiredFormat    `json:"requiredFormat"`
	CSR              string            `json:"csr"` // base64 DER, without PEM armour
	SubjectVariables []typedValue      `json:"subjectVariables,omitempty"`
	SubjectAltNames  []typedValue      `json:"subjectAltNames,omitempty"`
	Details          requestDetails    `json:"optionalCertificateRequestDetails"`
	Properties       map[string]string `json:"properties,omitempty"`
}

type requiredFormat struct {
	Format string `json:"format"`
}

// formatX509 is the certificate alone.
const formatX509 = "X509"

type typedValue struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// requestDetails: the names are those of the request, whatever the CSR says.
type requestDetails struct {
	ValidityPeriod string `json:"validityPeriod"`
	UseSANFromCSR  bool   `json:"useSANFromCSR"`
}

// enrollmentResponse is the answer to an enrolment, and to a question for one.
type enrollmentResponse struct {
	Type       string     `json:"type"`
	Enrollment enrollment `json:"enrollment"`
	Message    message    `json:"message"`
}

type enrollment struct {
	ID           string            `json:"id"`
	SerialNumber string            `json:"serialNumber"`
	Status       string            `json:"status"`
	Body         string            `json:"body"` // the certificate in the wanted format; empty while there is none
	Chain        []certificateData `json:"chain"`
}

type certificateData struct {
	CertificateData string `json:"certificateData"` // base64 DER
}

// message is what the gateway or the CA behind it says for people.
type message struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Target  string `json:"target"`
}

// certificateResponse is the answer of GET …/certificates/{serial}.
type certificateResponse struct {
	Certificate certificate       `json:"certificate"`
	Chain       []certificateData `json:"chain"`
}

type certificate struct {
	Status          string `json:"status"` // normal, revoked and others
	SerialNumber    string `json:"serialNumber"`
	CertificateData string `json:"certificateData"`
	RevocationInfo  struct {
		Reason string `json:"reason"`
	} `json:"revocationInfo"`
}

// caResponse is the answer of GET /certificate-authorities/{ca}?$fields=ca.certificate,ca.chain.
type caResponse struct {
	CA struct {
		ID          string            `json:"id"`
		Certificate certificateData   `json:"certificate"`
		Chain       []certificateData `json:"chain"`
	} `json:"ca"`
}

// profileResponse is the answer of GET …/profiles/{id}.
type profileResponse struct {
	Profile profile `json:"profile"`
}

// profile is a kind of certificate. Its variables are what subjects may be made of.
type profile struct {
	ID               string `json:"id"`
	SubjectVariables []struct {
		Name     string `json:"name"`
		Required bool   `json:"required"`
	} `json:"subjectVariableRequirements"`
}

// eventsResponse is one page of GET …/certificate-events. Versions of the gateway differ in how they say that there is more.
type eventsResponse struct {
	Events        []event `json:"events"`
	NextPageIndex string  `json:"nextPageIndex"`
	MorePages     bool    `json:"morePages"`
	HasMore       bool    `json:"hasMore"`
}

// event is something that happened to a certificate.
type event struct {
	Action       string `json:"action"`
	EventDate    string `json:"eventDate"`
	Certificate  string `json:"certificate"` // base64 DER
	SerialNumber string `json:"serialNumber"`
}

// actionRequest is the body of POST …/certificates/{serial}/actions.
type actionRequest struct {
	Action action `json:"action"`
}

type action struct {
	ID      string `json:"id,omitempty"`
	Type    string `json:"type"`
	Reason  string `json:"reason,omitempty"`
	Comment string `json:"comment,omitempty"`
	Status  string `json:"status,omitempty"` // ACCEPTED, REJECTED, COMPLETED
}

const revokeAction = "RevokeAction"

// The values of action.Status.
const (
	actionAccepted  = "ACCEPTED"
	actionRejected  = "REJECTED"
	actionCompleted = "COMPLETED"
)

type actionResponse struct {
	Action  action  `json:"action"`
	Message message `json:"message"`
}

package entrustecs

// certificateRequest is the body of POST /certificates, and with fewer fields that of renewals (no certType, no
// queueForApproval) and re-issues (no certExpiryDate either: they end when the certificate before does). There is no common
// name in it: Entrust takes that of the CSR.
type certificateRequest struct {
	CSR              string   `json:"csr"`
	CertType         string   `json:"certType,omitempty"`
	ClientID         int      `json:"clientId"`
	Org              string   `json:"org,omitempty"`
	SubjectAltName   []string `json:"subjectAltName"`
	EKU              string   `json:"eku,omitempty"`
	SigningAlg       string   `json:"signingAlg"`
	CertExpiryDate   string   `json:"certExpiryDate,omitempty"`
	CTLog            *bool    `json:"ctLog,omitempty"`
	QueueForApproval *bool    `json:"queueForApproval,omitempty"`
	Tracking         tracking `json:"tracking"`
}

const signingAlgorithm = "SHA-2"

// The values of certificateRequest.EKU.
const (
	ekuServer = "SERVER_AUTH"
	ekuClient = "CLIENT_AUTH"
	ekuBoth   = "SERVER_AND_CLIENT_AUTH"
)

// tracking goes with the certificate. TrackingInfo is free text: our order's id.
type tracking struct {
	TrackingInfo     string   `json:"trackingInfo,omitempty"`
	RequesterName    string   `json:"requesterName,omitempty"`
	RequesterEmail   string   `json:"requesterEmail,omitempty"`
	RequesterPhone   string   `json:"requesterPhone,omitempty"`
	AdditionalEmails []string `json:"additionalEmails,omitempty"`
}

// certificateResponse is the answer to POST /certificates, renewals, re-issues and approvals. One that waits for approval
// has a tracking id only.
type certificateResponse struct {
	TrackingID    int64    `json:"trackingId"`
	EndEntityCert string   `json:"endEntityCert"`
	ChainCerts    []string `json:"chainCerts"`
	SerialNumber  string   `json:"serialNumber"`
}

// certificate is the answer of GET /certificates/{trackingId}.
type certificate struct {
	Status        string   `json:"status"`
	TrackingID    int64    `json:"trackingId"`
	SerialNumber  string   `json:"serialNumber"`
	EndEntityCert string   `json:"endEntityCert"`
	ChainCerts    []string `json:"chainCerts"`
	CSR           string   `json:"csr"`
	Tracking      tracking `json:"tracking"`
	DeclineReason string   `json:"declineReason"`
}

// listResponse is one page of GET /certificates.
type listResponse struct {
	Summary struct {
		Total int `json:"total"`
	} `json:"summary"`
	Certificates []listedCertificate `json:"certificates"`
}

type listedCertificate struct {
	Status        string `json:"status"`
	TrackingID    int64  `json:"trackingId"`
	DN            string `json:"dn"`
	SerialNumber  string `json:"serialNumber"`
	IssueDateTime string `json:"issueDateTime"`
	CertType      string `json:"certType"`
}

// statusChange is the body of PATCH /certificates/{trackingId}.
type statusChange struct {
	Operation     string `json:"operation"`
	DeclineReason string `json:"declineReason,omitempty"`
}

const operationDecline = "DECLINE"

// revocationRequest is the body of POST /certificates/{trackingId}/revocations.
type revocationRequest struct {
	CRLReason         string `json:"crlReason"`
	RevocationComment string `json:"revocationComment"`
}

// organizationsResponse is the answer of GET /organizations.
type organizationsResponse struct {
	Organizations []organization `json:"organizations"`
}

type organization struct {
	Name               string `json:"name"`
	VerificationStatus string `json:"verificationStatus"`
	ClientID           int    `json:"clientId"`
}

const organizationApproved = "APPROVED"

// inventoriesResponse is the answer of GET /inventories.
type inventoriesResponse struct {
	Inventories []inventory `json:"inventories"`
}

type inventory struct {
	ProductType    string `json:"productType"`
	RemainingCount *int   `json:"remainingCount"`
}

// flexInventory can be used for every type of SSL certificate.
const flexInventory = "FLEX"

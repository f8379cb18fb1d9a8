package store

// States of a certificate.
const (
	CertificatePending  = "PENDING"
	CertificateActive   = "ACTIVE"
	CertificateExpired  = "EXPIRED"
	CertificateRevoked  = "REVOKED"
	CertificateArchived = "ARCHIVED"
)

// States of an agent.
const (
	AgentOnline  = "ONLINE"
	AgentOffline = "OFFLINE"
	AgentRetired = "RETIRED"
)

// States of a deployment.
const (
	DeploymentPending   = "PENDING"
	DeploymentDeploying = "DEPLOYING"
	DeploymentServed    = "SERVED"
	DeploymentDrifted   = "DRIFTED"
	DeploymentFailed    = "FAILED"
)

// States of an assignment.
const (
	AssignmentOpen      = "OPEN"
	AssignmentLeased    = "LEASED"
	AssignmentDone      = "DONE"
	AssignmentFailed    = "FAILED"
	AssignmentCancelled = "CANCELLED"
)

// Kinds of assignments.
const (
	KindCreateCsr = "CREATE_CSR"
	KindDeploy    = "DEPLOY"
	KindVerify    = "VERIFY"
)

// Transition is one allowed move of a state machine. Each is made by one function of Tx, in one statement that
// compares the state and sets it.
type Transition struct {
	Name string
	From []string
	To   string
}

// The transitions of a certificate. REVOKED can still be archived; nothing leads out of ARCHIVED, and nothing from
// REVOKED back.
func certificateActivate() Transition {
	return Transition{"activate", []string{CertificatePending, CertificateActive, CertificateExpired}, CertificateActive}
}

func certificateExpire() Transition {
	return Transition{"expire", []string{CertificateActive}, CertificateExpired}
}

func certificateRevoke() Transition {
	return Transition{"revoke", []string{CertificatePending, CertificateActive, CertificateExpired}, CertificateRevoked}
}

func certificateArchive() Transition {
	return Transition{"archive", []string{CertificatePending, CertificateActive, CertificateExpired, CertificateRevoked}, CertificateArchived}
}

// CertificateTransitions lists the moves of a certificate.
func CertificateTransitions() []Transition {
	return []Transition{certificateActivate(), certificateExpire(), certificateRevoke(), certificateArchive()}
}

func agentOnline() Transition {
	return Transition{"online", []string{AgentOnline, AgentOffline}, AgentOnline}
}

func agentOffline() Transition { return Transition{"offline", []string{AgentOnline}, AgentOffline} }

func agentRetire() Transition {
	return Transition{"retire", []string{AgentOnline, AgentOffline}, AgentRetired}
}

// AgentTransitions lists the moves of an agent.
func AgentTransitions() []Transition {
	return []Transition{agentOnline(), agentOffline(), agentRetire()}
}

// desire is also how a deployment starts again: with a new version, a changed target, a request, or after a failure.
func deploymentDesire() Transition {
	return Transition{"desire", []string{
		DeploymentPending, DeploymentDeploying, DeploymentServed, DeploymentDrifted, DeploymentFailed,
	}, DeploymentPending}
}

func deploymentStart() Transition {
	return Transition{"start", []string{DeploymentPending}, DeploymentDeploying}
}

func deploymentServe() Transition {
	return Transition{"serve", []string{DeploymentDeploying}, DeploymentServed}
}

// retry is a failed try with another one to come, and a lease that has run out.
func deploymentRetry() Transition {
	return Transition{"retry", []string{DeploymentDeploying}, DeploymentPending}
}

func deploymentFail() Transition {
	return Transition{"fail", []string{DeploymentPending, DeploymentDeploying}, DeploymentFailed}
}

func deploymentDrift() Transition {
	return Transition{"drift", []string{DeploymentServed, DeploymentDrifted}, DeploymentDrifted}
}

// confirm is a verification that saw the desired version.
func deploymentConfirm() Transition {
	return Transition{"confirm", []string{DeploymentServed, DeploymentDrifted}, DeploymentServed}
}

// DeploymentTransitions lists the moves of a deployment.
func DeploymentTransitions() []Transition {
	return []Transition{
		deploymentDesire(), deploymentStart(), deploymentServe(), deploymentRetry(), deploymentFail(), deploymentDrift(), deploymentConfirm(),
	}
}

package store

import (
	"slices"
	"time"
)

// Policy says when certificates are renewed.
type Policy struct {
	ID   string
	Name string
	// RenewAtFraction is the part of the lifetime after which to renew; 0: not set.
	RenewAtFraction float64
	// RenewBefore is the time before the end at which to renew, in whole seconds; 0: not set.
	RenewBefore   time.Duration
	Automatic     bool
	MaxAttempts   int
	AlertDays     []int32
	FreezeWindows []FreezeWindow
	CreateTime    time.Time
	UpdateTime    time.Time
	Revision      int32
}

// FreezeWindow is a time in which no scheduled renewal starts: from Start, up to and without End.
type FreezeWindow struct {
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Reason string    `json:"reason,omitempty"`
}

// PlanState says what a certificate's plan waits for.
type PlanState string

// The plan states.
const (
	// PlanScheduled: a renewal is due at the due time.
	PlanScheduled PlanState = "SCHEDULED"
	// PlanRetrying: a job has failed, a fresh one opens at the due time.
	PlanRetrying PlanState = "RETRYING"
	// PlanWorking: a job is open; its end makes the next plan.
	PlanWorking PlanState = "WORKING"
	// PlanIdle: nothing opens by itself.
	PlanIdle PlanState = "IDLE"
	// PlanEnded: the certificate is revoked or archived.
	PlanEnded PlanState = "ENDED"
)

// Plan is when the next job of a certificate opens by itself, and why.
type Plan struct {
	CertificateID     string
	State             PlanState
	PolicyID          string
	PolicyRevision    int32
	CertificateStatus string
	// RequestedBy is who created the certificate.
	RequestedBy string
	// RenewAt is when the certificate is due; zero: not scheduled.
	RenewAt time.Time
	// NotAfter is the end of the version that must be renewed first; zero: nothing was issued.
	NotAfter     time.Time
	Rule         string
	FreezeReason string
	FrozenUntil  time.Time
	// Failures counts the jobs that ended without success since the last success.
	Failures int
	// RetryTime is the earliest start after failures.
	RetryTime time.Time
	// Reopen tells that the first issue is tried again by itself.
	Reopen bool
	// Subject is a hash of what is wanted; empty: not told yet. SubjectBy is who wished it, until it is issued.
	Subject   string
	SubjectBy string
	// Reissue is why the certificate is issued without waiting for its renewal; empty: it is not.
	Reissue    string
	CreateTime time.Time
	UpdateTime time.Time
	DueTime    time.Time
}

// PlanKey is the newest version for one key of a certificate.
type PlanKey struct {
	CertificateID string
	AgentID       string
	Version       int32
	NotBefore     time.Time
	NotAfter      time.Time
}

// JobType is the kind of a job.
type JobType string

// The job types.
const (
	Issue  JobType = "ISSUE"
	Renew  JobType = "RENEW"
	Deploy JobType = "DEPLOY"
)

// JobState is the state of a job.
type JobState string

// The job states.
const (
	Pending          JobState = "PENDING"
	AwaitingApproval JobState = "AWAITING_APPROVAL"
	AwaitingCSR      JobState = "AWAITING_CSR"
	AwaitingCA       JobState = "AWAITING_CA"
	Running          JobState = "RUNNING"
	Completed        JobState = "COMPLETED"
	Failed           JobState = "FAILED"
	Cancelled        JobState = "CANCELLED"
	Expired          JobState = "EXPIRED"
)

// JobStates gives all states, open ones first.
func JobStates() []JobState {
	return []JobState{Pending, AwaitingApproval, AwaitingCSR, AwaitingCA, Running, Completed, Failed, Cancelled, Expired}
}

// Final tells whether the state is never left.
func (s JobState) Final() bool { return slices.Contains(JobStates()[5:], s) }

// Problem is why something did not work.
type Problem struct {
	Reason  string
	Message string
}

// Job is one piece of work on a certificate.
type Job struct {
	ID              string
	Type            JobType
	State           JobState
	CertificateID   string
	TargetID        string
	RetryOf         string
	Attempt         int
	MaxAttempts     int
	Error           Problem
	RequestedBy     string
	Askers          []string
	ApprovedBy      string
	ApprovalSubject string
	ApprovalComment string
	CreateTime      time.Time
	StartTime       time.Time
	EndTime         time.Time
	DeadlineTime    time.Time
	DueTime         time.Time
	Revision        int32
}

// MakesKeys tells whether the job obtains a certificate.
func (j *Job) MakesKeys() bool { return j.Type == Issue || j.Type == Renew }

// KeyState is how far one key of a job is.
type KeyState string

// The key states.
const (
	KeyAwaitingCSR KeyState = "AWAITING_CSR"
	KeyAwaitingCA  KeyState = "AWAITING_CA"
	KeyIssued      KeyState = "ISSUED"
	KeyDone        KeyState = "DONE"
	KeyFailed      KeyState = "FAILED"
)

// Key is one key of a job. AgentID is empty when the caller keeps it.
type Key struct {
	JobID   string
	AgentID string
	State   KeyState
	TaskID  string
	CsrPEM  string
	OrderID string
	Version int32
	Error   Problem
	// Permanent tells that trying again cannot help.
	Permanent bool
	// KeepCSR tells that a next try may use the same CSR.
	KeepCSR bool
	// OrderRequest is the SubmitOrderRequest of the order, encoded and without the CSR; nil: there is no order.
	OrderRequest []byte
}

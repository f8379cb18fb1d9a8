package logx

import (
	"time"

	"go.uber.org/zap"
)

// The keys of log fields, one spelling each.
const (
	KeyTime     = "time"
	KeyLevel    = "level"
	KeyMessage  = "message"
	KeyLogger   = "logger"
	KeyError    = "error"
	KeyStack    = "stack"
	KeyService  = "service"
	KeyVersion  = "version"
	KeyRequest  = "request_id"
	KeyMethod   = "method"
	KeyPeer     = "peer"
	KeyCaller   = "caller"
	KeyRole     = "caller_role"
	KeyActor    = "actor"
	KeyCode     = "code"
	KeyReason   = "reason"
	KeyDuration = "duration"
	KeyAddress  = "address"
	KeyPath     = "path"
	KeyLoop     = "loop"
	KeyCheck    = "check"
	KeyCount    = "count"
	KeyAttempt  = "attempt"
	KeyNextTime = "next_time"

	KeyCertificate = "certificate_id"
	KeyVersionID   = "certificate_version_id"
	KeyOrder       = "order_id"
	KeyIssuer      = "issuer_id"
	KeyProfile     = "profile_id"
	KeyPolicy      = "policy_id"
	KeyJob         = "job_id"
	KeyPoll        = "poll_id"
	KeyAgent       = "agent_id"
	KeyTarget      = "target_id"
	KeyDeployment  = "deployment_id"
	KeyEvent       = "event_id"
)

// Error gives the field of an error.
func Error(err error) zap.Field { return zap.NamedError(KeyError, err) }

// Stack gives the field of a recovered panic's stack.
func Stack(stack []byte) zap.Field { return zap.ByteString(KeyStack, stack) }

// Service gives the field of a service's name.
func Service(name string) zap.Field { return zap.String(KeyService, name) }

// RequestID gives the field of a request id.
func RequestID(id string) zap.Field { return zap.String(KeyRequest, id) }

// Method gives the field of a full gRPC method name.
func Method(full string) zap.Field { return zap.String(KeyMethod, full) }

// Peer gives the field of the address or the name of the other side.
func Peer(p string) zap.Field { return zap.String(KeyPeer, p) }

// Caller gives the field of a caller, as "type:id".
func Caller(c string) zap.Field { return zap.String(KeyCaller, c) }

// Role gives the field of a caller's role.
func Role(r string) zap.Field { return zap.String(KeyRole, r) }

// Actor gives the field of the party on whose behalf a caller acts, as "type:id".
func Actor(a string) zap.Field { return zap.String(KeyActor, a) }

// Code gives the field of a status code.
func Code(c string) zap.Field { return zap.String(KeyCode, c) }

// Reason gives the field of an error's reason.
func Reason(r string) zap.Field { return zap.String(KeyReason, r) }

// Duration gives the field of a duration, in seconds.
func Duration(d time.Duration) zap.Field { return zap.Duration(KeyDuration, d) }

// Address gives the field of a network address.
func Address(a string) zap.Field { return zap.String(KeyAddress, a) }

// Path gives the field of a file path.
func Path(p string) zap.Field { return zap.String(KeyPath, p) }

// Loop gives the field of a loop's name.
func Loop(name string) zap.Field { return zap.String(KeyLoop, name) }

// Check gives the field of a readiness check's name.
func Check(name string) zap.Field { return zap.String(KeyCheck, name) }

// Count gives the field of a number of things.
func Count(n int) zap.Field { return zap.Int(KeyCount, n) }

// Attempt gives the field of the number of an attempt, counted from 1.
func Attempt(n int) zap.Field { return zap.Int(KeyAttempt, n) }

// NextTime gives the field of the time when something is tried again.
func NextTime(t time.Time) zap.Field { return zap.Time(KeyNextTime, t) }

// ID gives the field of an identifier; key is one of the …_id keys above.
func ID(key, id string) zap.Field { return zap.String(key, id) }

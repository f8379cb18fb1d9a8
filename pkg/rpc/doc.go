// Package rpc builds gRPC servers and clients, so that all of them are alike: one chain of interceptors in one order,
// authorisation by a table that must be complete, errors that never show their causes, deadlines everywhere, and a
// stop that is bounded. Services in one process use the same servers and clients over a MemoryNetwork.
package rpc

// Gateway is the name of the service whose word about a caller is taken.
const Gateway = "gateway"

// The metadata keys of certctl. A client of this package sets them itself and drops what the context brought, so
// that nothing that arrived from outside is passed on.
const (
	// MetadataAuthorization holds "Bearer <token>": a peer token, or what the server's Authenticator expects.
	MetadataAuthorization = "authorization"
	// MetadataRequestID holds the request id.
	MetadataRequestID = "x-request-id"
	// MetadataCaller holds the caller that the gateway has verified: base64url of the JSON of an rpcctx.Caller.
	MetadataCaller = "certctl-caller"
	// MetadataActor holds, in the same form, for whom a peer acts. It is for the audit trail only.
	MetadataActor = "certctl-actor"
)

// The metadata keys in which the gateway hands over headers of its caller's request.
const (
	// MetadataIdempotencyKey holds Idempotency-Key.
	MetadataIdempotencyKey = "idempotency-key"
	// MetadataIfMatch holds If-Match.
	MetadataIfMatch = "if-match"
)

// MaxMessageSize bounds a request, in bytes.
const MaxMessageSize = 16 << 20

// MaxAnswerSize bounds an answer, in bytes. The largest is a CRL, which has up to 50 bytes for each revoked certificate.
const MaxAnswerSize = 64 << 20

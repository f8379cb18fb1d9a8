package api

import (
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

// AuthzTable says who may call what.
func AuthzTable() rpc.AuthzTable {
	readers := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleAuditor)
	peers := rpc.Allow(rpcctx.RolePeer)
	return rpc.AuthzTable{
		auditv1.AuditService_ListEvents_FullMethodName:     readers,
		auditv1.AuditService_GetEvent_FullMethodName:       readers,
		auditv1.AuditService_GetCheckpoint_FullMethodName:  readers,
		auditv1.AuditService_VerifyEvents_FullMethodName:   readers,
		eventv1.EventSinkService_Deliver_FullMethodName:    peers,
		eventv1.RevisionService_GetRevision_FullMethodName: peers,
	}
}

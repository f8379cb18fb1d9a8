// Package view turns rows of the store into messages, and back where a message is stored.
package view

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// Time is a moment; nil stays nil.
func Time(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

// Certificate shows a certificate.
func Certificate(c store.Certificate) *inventoryv1.Certificate {
	return &inventoryv1.Certificate{
		Id: c.ID, Name: c.Name, CommonName: c.CommonName, DnsNames: c.DNSNames, IpAddresses: c.IPAddresses,
		EmailAddresses: c.EmailAddresses, Uris: c.URIs, IssuerId: c.IssuerID, ProfileId: c.ProfileID, PolicyId: c.PolicyID,
		TargetIds: c.TargetIDs, KeyAlgorithm: KeyAlgorithm(c.KeyAlgorithm), Owner: c.Owner, Team: c.Team, Environment: c.Environment,
		Labels: c.Labels, Status: inventoryv1.Certificate_Status(inventoryv1.Certificate_Status_value[c.Status]),
		CurrentVersion: c.CurrentVersion, SerialNumber: c.SerialNumber, FingerprintSha256: c.FingerprintSHA256,
		NotBefore: Time(c.NotBefore), NotAfter: Time(c.NotAfter), RevocationTime: Time(c.RevocationTime),
		RevocationReason: c.RevocationReason, CreateTime: timestamppb.New(c.CreateTime), UpdateTime: timestamppb.New(c.UpdateTime),
		Revision: c.Revision,
	}
}

// CertificateRow reads what a user may set.
func CertificateRow(c *inventoryv1.Certificate) store.Certificate {
	return store.Certificate{
		ID: c.GetId(), Name: c.GetName(), CommonName: c.GetCommonName(), DNSNames: c.GetDnsNames(), IPAddresses: c.GetIpAddresses(),
		EmailAddresses: c.GetEmailAddresses(), URIs: c.GetUris(), IssuerID: c.GetIssuerId(), ProfileID: c.GetProfileId(),
		PolicyID: c.GetPolicyId(), TargetIDs: c.GetTargetIds(), KeyAlgorithm: KeyAlgorithmName(c.GetKeyAlgorithm()), Owner: c.GetOwner(),
		Team: c.GetTeam(), Environment: c.GetEnvironment(), Labels: c.GetLabels(),
	}
}

// KeyAlgorithm reads the name of a key algorithm.
func KeyAlgorithm(name string) typev1.KeyAlgorithm {
	return typev1.KeyAlgorithm(typev1.KeyAlgorithm_value[name])
}

// KeyAlgorithmName is how a key algorithm is stored; empty: unspecified.
func KeyAlgorithmName(a typev1.KeyAlgorithm) string {
	if a == typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		return ""
	}
	return a.String()
}

// Names are a certificate's names.
func Names(c store.Certificate) *typev1.Names {
	return &typev1.Names{CommonName: c.CommonName, DnsNames: c.DNSNames, IpAddresses: c.IPAddresses, EmailAddresses: c.EmailAddresses, Uris: c.URIs}
}

// Version shows a version.
func Version(v store.Version) *inventoryv1.CertificateVersion {
	return &inventoryv1.CertificateVersion{
		Version: v.Version, SerialNumber: v.SerialNumber, FingerprintSha256: v.FingerprintSHA256, IssuerDn: v.IssuerDN, SubjectDn: v.SubjectDN,
		NotBefore: timestamppb.New(v.NotBefore), NotAfter: timestamppb.New(v.NotAfter), KeyAlgorithm: KeyAlgorithm(v.KeyAlgorithm),
		CertificatePem: v.CertificatePEM, ChainPem: v.ChainPEM, OrderId: v.OrderID, CreateTime: timestamppb.New(v.CreateTime),
		AgentId: v.AgentID, PublicKeySha256: v.PublicKeySHA256, RevocationTime: Time(v.RevocationTime), RevocationReason: v.RevocationReason,
		RevocationState: RevocationState(v.RevocationState), RevocationError: v.RevocationError,
	}
}

// RevocationState shows how a revocation is at the CA.
func RevocationState(state string) inventoryv1.Revocation_State {
	if state == "DONE" {
		return inventoryv1.Revocation_REVOKED
	}
	return inventoryv1.Revocation_State(inventoryv1.Revocation_State_value[state])
}

// RevokedVersions shows the versions of a revocation.
func RevokedVersions(versions []store.Version) []*inventoryv1.RevokedVersion {
	out := make([]*inventoryv1.RevokedVersion, 0, len(versions))
	for _, v := range versions {
		out = append(out, &inventoryv1.RevokedVersion{Version: v.Version, SerialNumber: v.SerialNumber})
	}
	return out
}

// Agent shows an agent.
func Agent(a store.Agent) *inventoryv1.Agent {
	return &inventoryv1.Agent{
		Id: a.ID, Name: a.Name, Hostname: a.Hostname, Os: a.OS, Architecture: a.Architecture, Version: a.Version,
		Status:       inventoryv1.Agent_Status(inventoryv1.Agent_Status_value[a.Status]),
		LastSeenTime: Time(a.LastSeenTime), IpAddress: a.IPAddress, Labels: a.Labels, Capabilities: a.Capabilities,
		CreateTime: timestamppb.New(a.CreateTime), RetireTime: Time(a.RetireTime), Revision: a.Revision,
	}
}

// JoinToken shows a join token without its secret.
func JoinToken(j store.JoinToken) *inventoryv1.JoinToken {
	return &inventoryv1.JoinToken{
		Id: j.ID, MaxUses: j.MaxUses, Uses: j.Uses, ExpireTime: timestamppb.New(j.ExpireTime), AllowReenrollment: j.AllowReenrollment,
		CreateTime: timestamppb.New(j.CreateTime), CreatedBy: j.CreatedBy,
	}
}

// Endpoint shows a target's endpoint; nil when it has none.
func Endpoint(t store.Target) *typev1.Endpoint {
	if t.EndpointAddress == "" && t.EndpointServerName == "" && t.EndpointStarttls == "" {
		return nil
	}
	return &typev1.Endpoint{
		Address: t.EndpointAddress, ServerName: t.EndpointServerName,
		Starttls: typev1.Endpoint_StartTls(typev1.Endpoint_StartTls_value[t.EndpointStarttls]),
	}
}

// Target shows a target.
func Target(t store.Target) (*inventoryv1.Target, error) {
	config := &structpb.Struct{}
	if err := protojson.Unmarshal(t.Config, config); err != nil {
		return nil, fmt.Errorf("decode config of target %s: %w", t.ID, err)
	}
	return &inventoryv1.Target{
		Id: t.ID, Name: t.Name, AgentId: t.AgentID, Type: t.Type, Config: config, Endpoint: Endpoint(t),
		CreateTime: timestamppb.New(t.CreateTime), UpdateTime: timestamppb.New(t.UpdateTime), Revision: t.Revision,
	}, nil
}

// SetEndpoint writes an endpoint into a row.
func SetEndpoint(t *store.Target, e *typev1.Endpoint) {
	t.EndpointAddress, t.EndpointServerName, t.EndpointStarttls = e.GetAddress(), e.GetServerName(), ""
	if s := e.GetStarttls(); s != typev1.Endpoint_START_TLS_UNSPECIFIED {
		t.EndpointStarttls = s.String()
	}
}

// Config is a target's configuration as JSON.
func Config(s *structpb.Struct) (json.RawMessage, error) {
	if s == nil {
		return json.RawMessage(`{}`), nil
	}
	b, err := s.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	return b, nil
}

// AgentTarget is a target as its agent gets it.
func AgentTarget(t store.Target) *agentv1.Target {
	return &agentv1.Target{Id: t.ID, Type: t.Type, Config: string(t.Config), Endpoint: Endpoint(t)}
}

// Deployment shows a deployment.
func Deployment(d store.Deployment) *inventoryv1.Deployment {
	out := &inventoryv1.Deployment{
		Id: d.ID, CertificateId: d.CertificateID, TargetId: d.TargetID, AgentId: d.AgentID,
		Status:         inventoryv1.Deployment_Status(inventoryv1.Deployment_Status_value[d.Status]),
		DesiredVersion: d.DesiredVersion, DeployedVersion: d.DeployedVersion, ServedVersion: d.ServedVersion,
		ServedFingerprintSha256: d.ServedFingerprint, VerifyTime: Time(d.VerifyTime), VerifiedAddress: d.VerifiedAddress, Attempt: d.Attempt,
		DeadlineTime: Time(d.DeadlineTime), Error: Problem(d.ErrorReason, d.ErrorMessage), CreateTime: timestamppb.New(d.CreateTime),
		UpdateTime: timestamppb.New(d.UpdateTime), Revision: d.Revision,
	}
	if waits := d.Status == store.DeploymentPending || d.Status == store.DeploymentFailed; waits && !d.DueTime.IsZero() {
		out.NextAttemptTime = timestamppb.New(d.DueTime)
	}
	return out
}

// Problem shows a problem; nil when there is none.
func Problem(reason, message string) *typev1.Problem {
	if reason == "" {
		return nil
	}
	return &typev1.Problem{Reason: reason, Message: message}
}

// Discovered shows a discovered certificate.
func Discovered(f store.DiscoveredCertificate) *inventoryv1.DiscoveredCertificate {
	return &inventoryv1.DiscoveredCertificate{
		Id: f.ID, FingerprintSha256: f.FingerprintSHA256, CommonName: f.CommonName, DnsNames: f.DNSNames, IssuerDn: f.IssuerDN,
		SubjectDn: f.SubjectDN, SerialNumber: f.SerialNumber, NotBefore: timestamppb.New(f.NotBefore), NotAfter: timestamppb.New(f.NotAfter),
		Status:        inventoryv1.DiscoveredCertificate_Status(inventoryv1.DiscoveredCertificate_Status_value[f.Status]),
		FirstSeenTime: timestamppb.New(f.FirstSeenTime), LastSeenTime: timestamppb.New(f.LastSeenTime),
	}
}

// Each shows all rows.
func Each[R, M any](rows []R, show func(R) M) []M {
	out := make([]M, 0, len(rows))
	for _, r := range rows {
		out = append(out, show(r))
	}
	return out
}

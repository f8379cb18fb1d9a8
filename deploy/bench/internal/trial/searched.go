package trial

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
)

// example has values that filters are made of.
type example struct {
	Name, Owner, Team, Environment, IssuerID, ProfileID, PolicyID, SerialNumber, FingerprintSHA256, LabelKey, LabelValue, TargetID, AgentID, CertificateID string
	JobID, ActorID, Action, ResourceType, RequestID, TargetType                                                                                            string
}

// example takes a row from somewhere in the middle, and what belongs to it.
func (b *bench) example(ctx context.Context) (e example, err error) {
	rows, err := b.conn.Query(ctx, `SELECT c.id AS certificate_id, c.name, c.owner, c.team, c.environment, c.issuer_id, c.profile_id, c.policy_id, c.serial_number, c.fingerprint_sha256,
 l.key AS label_key, l.value AS label_value, t.id AS target_id, t.agent_id, t.type AS target_type, COALESCE(j.id, '') AS job_id, v.actor_id, v.action, v.resource_type, v.request_id
FROM inventory.certificates c JOIN inventory.certificate_targets b ON b.certificate_id = c.id JOIN inventory.targets t ON t.id = b.target_id
 LEFT JOIN renewalscheduler.jobs j ON j.certificate_id = c.id
 CROSS JOIN LATERAL jsonb_each_text(c.labels) l CROSS JOIN (SELECT actor_id, action, resource_type, request_id FROM audit.events ORDER BY sequence DESC OFFSET 100 LIMIT 1) v
WHERE c.owner <> '' AND c.team <> '' AND c.environment <> '' AND c.serial_number <> '' ORDER BY c.id OFFSET 100 LIMIT 1`)
	if err != nil {
		return e, fmt.Errorf("read an example: %w", err)
	}
	e, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByNameLax[example])
	if err != nil {
		return e, fmt.Errorf("read an example: %w", err)
	}
	return e, nil
}

func when(months int) string { return time.Now().AddDate(0, months, 0).UTC().Format(time.RFC3339) }

func only(name string, values ...string) url.Values { return url.Values{name: values} }

// orders are the given ones, up and down.
func orders(fields ...string) (all []string) {
	for _, f := range fields {
		all = append(all, f, f+" desc")
	}
	return all
}

func (b *bench) searched(ctx context.Context) ([]searched, error) {
	e, err := b.example(ctx)
	if err != nil {
		return nil, err
	}
	return []searched{
		{certificates, certificateFilters(e), orders("name", "not_after", "create_time", "update_time")},
		{"/api/v1/jobs", map[string]url.Values{
			"none": {}, "status common": only("status", "COMPLETED"), "status rare": only("status", "FAILED"), "two statuses": only("status", "PENDING", "EXPIRED"),
			"type": only("type", "DEPLOY"), "certificate": only("certificate_id", e.CertificateID), "agent": only("agent_id", e.AgentID), "target": only("target_id", e.TargetID),
			"type and status": {"type": {"RENEW"}, "status": {"FAILED", "EXPIRED"}},
		}, orders("create_time", "deadline_time")},
		{"/api/v1/agents", map[string]url.Values{
			"none": {}, "status": only("status", "OFFLINE"), "part of a name": only("name", "web"), "name not there": only("name", "no-such-name-anywhere"),
		}, orders("name", "create_time")},
		{"/api/v1/targets", map[string]url.Values{"none": {}, "agent": only("agent_id", e.AgentID), "type": only("type", e.TargetType), "part of a name": only("name", "web")},
			orders("name", "create_time")},
		{"/api/v1/deployments", map[string]url.Values{
			"none": {}, "certificate": only("certificate_id", e.CertificateID), "target": only("target_id", e.TargetID), "agent": only("agent_id", e.AgentID),
			"status common": only("status", "SERVED"), "status rare": only("status", "FAILED"), "two statuses": only("status", "PENDING", "DRIFTED"),
		}, orders("create_time", "update_time")},
		{"/api/v1/discovered-certificates", map[string]url.Values{"none": {}, "status": only("status", "UNMANAGED"), "two statuses": only("status", "MANAGED", "DISMISSED")},
			orders("last_seen_time", "not_after")},
		{"/api/v1/orders", map[string]url.Values{
			"none": {}, "status common": only("status", "ISSUED"), "status rare": only("status", "FAILED"), "two statuses": only("status", "PENDING", "REJECTED"),
			"certificate": only("certificate_id", e.CertificateID), "issuer": only("issuer_id", e.IssuerID), "job": only("job_id", e.JobID), "created before": only("created_before", when(-1)),
			"created after": only("created_after", when(-1)), "issuer and status": {"issuer_id": {e.IssuerID}, "status": {"FAILED"}},
		}, orders("create_time")},
		{"/api/v1/audit", map[string]url.Values{
			"none": {}, "actor": only("actor_id", e.ActorID), "actor type": only("actor_type", "AGENT"), "action": only("action", e.Action), "actions": only("action", "certificate.*"),
			"resource type": only("resource_type", e.ResourceType), "resource": {"resource_type": {"certificate"}, "resource_id": {e.CertificateID}}, "outcome": only("outcome", "DENIED"),
			"request": only("request_id", e.RequestID), "after": only("after", when(-1)), "before": only("before", when(-1)),
		}, orders("time", "sequence")},
	}, nil
}

func certificateFilters(e example) map[string]url.Values {
	return map[string]url.Values{
		"none": {}, "status common": only("status", "ACTIVE"), "status rare": only("status", "REVOKED"), "status expired": only("status", "EXPIRED"), "two statuses": only("status", "PENDING", "EXPIRED"),
		"issuer": only("issuer_id", e.IssuerID), "profile": only("profile_id", e.ProfileID), "policy": only("policy_id", e.PolicyID), "owner": only("owner", e.Owner),
		"team": only("team", e.Team), "environment": only("environment", e.Environment), "name": only("name", e.Name), "part of a name": only("name", "shop"),
		"name not there": only("name", "no-such-name-anywhere"), "serial number": only("serial_number", e.SerialNumber),
		"fingerprint": only("fingerprint_sha256", e.FingerprintSHA256), "expires before": only("expires_before", when(1)), "expires after": only("expires_after", when(2)),
		"label": only("label."+e.LabelKey, e.LabelValue), "target": only("target_id", e.TargetID), "agent": only("agent_id", e.AgentID),
		"team, status and expiry": {"team": {e.Team}, "status": {"ACTIVE"}, "expires_before": {when(1)}}, "owner not there": only("owner", "nobody"),
		"name and status": {"name": {"shop"}, "status": {"REVOKED"}},
	}
}

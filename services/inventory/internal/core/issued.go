package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// What is told of an order that has its certificate, and of certificates that the CA knows to be revoked.
const (
	eventIssued  = "certificate.issued"
	eventRevoked = "revocation.done"
)

// issued is one certificate that was issued.
type issued struct {
	version   store.Version
	requestID string
}

// certificatesIssued stores versions, makes the last one of each certificate the current one and has them deployed. An order gives
// one version, however often it is told. However many there are, they are read and written together.
func (c *Core) certificatesIssued(ctx context.Context, t *store.Tx, events []*eventv1.Event) error {
	list, err := readIssued(events)
	if err != nil {
		return err
	}
	rows, err := lockFor(ctx, t, list)
	if err != nil {
		return err
	}
	if list, err = numbered(ctx, t, list, rows); err != nil || len(list) == 0 {
		return err
	}
	versions := make([]store.Version, 0, len(list))
	current := make(map[string]store.Version, len(list))
	for _, i := range list {
		versions = append(versions, i.version)
		if !rows[i.version.CertificateID].Final() {
			current[i.version.CertificateID] = i.version
		}
	}
	if err := t.InsertVersions(ctx, versions); err != nil {
		return err
	}
	if _, err := t.ActivateCertificates(ctx, slices.Collect(maps.Values(current))); err != nil {
		return err
	}
	t.Changed(store.Certificates)
	for _, i := range list {
		t.CausedBy(i.requestID)
		if err := c.versionStored(rpcctx.WithRequestID(ctx, i.requestID), t, rows[i.version.CertificateID], i.version); err != nil {
			return err
		}
	}
	return c.deployVersions(ctx, t, list, rows)
}

func readIssued(events []*eventv1.Event) ([]issued, error) {
	list := make([]issued, 0, len(events))
	for _, e := range events {
		m := &issuancev1.CertificateIssued{}
		if err := payload(e, m); err != nil {
			return nil, err
		}
		v, err := parseVersion(m)
		if err != nil {
			return nil, outbox.Reject(err)
		}
		list = append(list, issued{version: v, requestID: e.GetRequestId()})
	}
	return list, nil
}

// lockFor locks the certificates, by id.
func lockFor(ctx context.Context, t *store.Tx, list []issued) (map[string]store.Certificate, error) {
	locked, err := t.LockCertificates(ctx, certificatesOf(list))
	if err != nil {
		return nil, err
	}
	rows := make(map[string]store.Certificate, len(locked))
	for _, row := range locked {
		rows[row.ID] = row
	}
	for _, i := range list {
		if _, ok := rows[i.version.CertificateID]; !ok {
			return nil, outbox.Reject(fmt.Errorf("there is no certificate %q", i.version.CertificateID))
		}
	}
	return rows, nil
}

func certificatesOf(list []issued) []string {
	ids := make([]string, 0, len(list))
	for _, i := range list {
		ids = append(ids, i.version.CertificateID)
	}
	return ids
}

// numbered leaves out orders that have a version and numbers the versions of the others. The certificates are locked.
func numbered(ctx context.Context, t *store.Tx, list []issued, rows map[string]store.Certificate) ([]issued, error) {
	orders := make([]string, 0, len(list))
	for _, i := range list {
		orders = append(orders, i.version.OrderID)
	}
	known, err := t.OrdersWithVersion(ctx, orders)
	if err != nil {
		return nil, err
	}
	have := make(map[string]bool, len(orders))
	for _, id := range known {
		have[id] = true
	}
	newest, err := t.NewestVersions(ctx, certificatesOf(list))
	if err != nil {
		return nil, err
	}
	last := make(map[string]int32, len(newest))
	for _, n := range newest {
		last[n.CertificateID] = n.Version
	}
	fresh := make([]issued, 0, len(list))
	for _, i := range list {
		v, row := i.version, rows[i.version.CertificateID]
		if have[v.OrderID] {
			continue
		}
		have[v.OrderID] = true
		last[row.ID]++
		v.Version = last[row.ID]
		if row.RevocationTime != nil { // also if it was archived after that
			// Issued while it was being revoked: nobody wants it any more, so the CA is told.
			v.RevocationTime, v.RevocationReason, v.RevocationState = row.RevocationTime, row.RevocationReason, "PENDING"
		}
		fresh = append(fresh, issued{version: v, requestID: i.requestID})
	}
	return fresh, nil
}

// versionStored tells others of a version.
func (c *Core) versionStored(ctx context.Context, t *store.Tx, row store.Certificate, v store.Version) error {
	audit(ctx, t, "version.stored", resourceCertificate, row.ID, map[string]any{
		"version": v.Version, "serial_number": v.SerialNumber, "fingerprint_sha256": v.FingerprintSHA256, "order_id": v.OrderID,
		"agent_id": v.AgentID, "not_after": v.NotAfter.Format(time.RFC3339),
	})
	if row.Final() {
		return c.storedTooLate(ctx, t, row, v)
	}
	tell(t, toScheduler, "version.stored", resourceCertificate, row.ID, &inventoryv1.VersionStored{
		CertificateId: row.ID, Version: v.Version, AgentId: v.AgentID, OrderId: v.OrderID,
		NotBefore: timestamppb.New(v.NotBefore), NotAfter: timestamppb.New(v.NotAfter),
	})
	return nil
}

// deployVersions turns the targets of the versions' agents to them.
func (c *Core) deployVersions(ctx context.Context, t *store.Tx, list []issued, rows map[string]store.Certificate) error {
	var ids []string
	for _, i := range list {
		if row := rows[i.version.CertificateID]; i.version.AgentID != "" && !row.Final() {
			ids = append(ids, row.TargetIDs...)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	targets, err := t.GetTargetAgents(ctx, ids)
	if err != nil {
		return err
	}
	var wanted []desired
	for _, i := range list {
		row, v := rows[i.version.CertificateID], i.version
		for _, target := range targets {
			if v.AgentID == "" || row.Final() || target.AgentID != v.AgentID || target.AgentStatus == store.AgentRetired || !slices.Contains(row.TargetIDs, target.ID) {
				continue
			}
			wanted = append(wanted, desired{certificateID: row.ID, targetID: target.ID, agentID: v.AgentID, version: v.Version, requestID: i.requestID})
		}
	}
	return c.desire(ctx, t, wanted...)
}

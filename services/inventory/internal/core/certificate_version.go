package core

import (
	"context"
	"errors"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// ListCertificateVersions lists what was issued.
func (c *Core) ListCertificateVersions(ctx context.Context, r *inventoryv1.ListCertificateVersionsRequest) (*inventoryv1.ListCertificateVersionsResponse, error) {
	row, err := c.store.GetCertificate(ctx, r.GetCertificateId())
	if _, err = found(row, err, resourceCertificate, r.GetCertificateId()); err != nil {
		return nil, err
	}
	p, err := listPage(ctx, c, r, lister[store.Version]{
		collection: "versions",
		rows: func(ctx context.Context, s store.Slice) ([]store.Version, error) {
			return c.store.ListVersions(ctx, r.GetCertificateId(), s)
		},
		count: func(ctx context.Context) (int32, error) { return c.store.CountVersions(ctx, r.GetCertificateId()) },
		cursor: func(v store.Version, _ string) (page.Value, page.Value) {
			return page.Value{}, page.IntValue(int64(v.Version))
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListCertificateVersionsResponse{Versions: view.Each(p.rows, view.Version), NextPageToken: p.next, TotalSize: p.total}, nil
}

// GetCertificateVersion answers one version.
func (c *Core) GetCertificateVersion(ctx context.Context, r *inventoryv1.GetCertificateVersionRequest) (*inventoryv1.GetCertificateVersionResponse, error) {
	v, err := c.version(ctx, r.GetCertificateId(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetCertificateVersionResponse{Version: view.Version(v)}, nil
}

// CertificatePEM answers leaf and chain of a version.
func (c *Core) CertificatePEM(ctx context.Context, certificateID string, version int32) ([]byte, error) {
	v, err := c.version(ctx, certificateID, version)
	if err != nil {
		return nil, err
	}
	leaf := v.CertificatePEM
	if leaf != "" && !strings.HasSuffix(leaf, "\n") {
		leaf += "\n"
	}
	return []byte(leaf + v.ChainPEM), nil
}

func (c *Core) version(ctx context.Context, certificateID string, version int32) (store.Version, error) {
	v, err := c.store.GetVersion(ctx, certificateID, version)
	if errors.Is(err, store.ErrNotFound) {
		row, err := c.store.GetCertificate(ctx, certificateID)
		if _, err = found(row, err, resourceCertificate, certificateID); err != nil {
			return v, err
		}
		return v, errs.New(errs.NotFound, "VERSION_NOT_FOUND", "certificate %s has no version %d", certificateID, version)
	}
	return v, err
}

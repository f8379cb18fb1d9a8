package inventory_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

func TestATokenIsNotUsedMoreOftenThanItMayBe(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	token := r.joinToken(t, &inventoryv1.CreateJoinTokenRequest{MaxUses: 3}).GetToken()
	var in atomic.Int32
	var g errgroup.Group
	for i := range 12 {
		g.Go(func() error {
			_, err := r.tryEnroll(t, enrollment(named("h-%d", i), token))
			if err == nil {
				in.Add(1)
			} else if errs.ReasonOf(err) != "JOIN_TOKEN_NOT_VALID" {
				return err
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, int32(3), in.Load())
}

func TestOneOfManyHostsGetsAName(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	var in atomic.Int32
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			_, err := r.tryEnroll(t, enrollment("same", standing))
			if err == nil {
				in.Add(1)
			} else if errs.ReasonOf(err) != "AGENT_NAME_TAKEN" {
				return err
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, int32(1), in.Load())
}

func TestRevokingWhileVersionsArriveEndsRevoked(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "storm")
	r.target(t, "t-storm", h.id)
	r.certificate(t, "c-storm", "t-storm")
	leaves := []leaf{}
	for range 6 {
		leaves = append(leaves, newLeaf(t, "c-storm", h.id, 24*time.Hour))
	}
	var g errgroup.Group
	for _, l := range leaves {
		g.Go(func() error {
			r.deliver(t, "certificate.issued", l.issued)
			return nil
		})
	}
	g.Go(func() error {
		_, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-storm"})
		return err
	})
	require.NoError(t, g.Wait())
	require.Equal(t, inventoryv1.Certificate_REVOKED, r.get(t, "c-storm").GetStatus())
	require.Empty(t, r.deployments(t, "c-storm"))
	require.Empty(t, h.list(t, 0))
	a, err := r.certificates().ListCertificateVersions(t.Context(), &inventoryv1.ListCertificateVersionsRequest{CertificateId: "c-storm"})
	require.NoError(t, err)
	require.Len(t, a.GetVersions(), 6, "no version is lost")
	for _, v := range a.GetVersions() {
		require.NotNil(t, v.GetRevocationTime(), "and none stays valid")
	}
}

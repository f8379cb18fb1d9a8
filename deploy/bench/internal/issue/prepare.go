package issue

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// prepare makes keys and CSRs, and certificates with their plans in the database as inventory and the scheduler would have stored them.
func prepare(ctx context.Context, cfg Config) ([]*issuancev1.SubmitOrderRequest, error) {
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("name the run: %w", err)
	}
	run := "bench" + hex.EncodeToString(id)
	requests := make([]*issuancev1.SubmitOrderRequest, cfg.Most)
	for n := range requests {
		var err error
		if requests[n], err = request(run, n); err != nil {
			return nil, err
		}
	}
	return requests, store(ctx, cfg.DatabaseURL, requests)
}

func request(run string, n int) (*issuancev1.SubmitOrderRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	wanted := names(n, run)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: wanted.GetCommonName()}, DNSNames: wanted.GetDnsNames(),
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make CSR: %w", err)
	}
	order, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make id: %w", err)
	}
	return &issuancev1.SubmitOrderRequest{
		OrderId: "ord-" + order.String(), CertificateId: fmt.Sprintf("%s-%d", run, n), IssuerId: issuerID, ProfileId: profileID,
		Names: wanted, CsrPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	}, nil
}

// store copies the certificates and their plans into the database.
func store(ctx context.Context, url string, requests []*issuancev1.SubmitOrderRequest) error {
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = db.Close(context.WithoutCancel(ctx)) }()
	tables := []struct {
		name    pgx.Identifier
		columns []string
		row     func(r *issuancev1.SubmitOrderRequest) []any
	}{
		{
			pgx.Identifier{"inventory", "certificates"},
			[]string{"id", "name", "common_name", "dns_names", "search_text", "issuer_id", "profile_id", "policy_id", "status"},
			func(r *issuancev1.SubmitOrderRequest) []any {
				host := r.GetNames().GetCommonName()
				return []any{r.GetCertificateId(), host, host, r.GetNames().GetDnsNames(), host, issuerID, profileID, policyID, "PENDING"}
			},
		},
		{
			pgx.Identifier{"renewalscheduler", "plans"},
			[]string{"id", "state", "policy_id", "policy_revision", "certificate_status", "requested_by", "create_time", "update_time"},
			func(r *issuancev1.SubmitOrderRequest) []any {
				now := time.Now()
				return []any{r.GetCertificateId(), "IDLE", policyID, 1, "PENDING", "bench", now, now}
			},
		},
	}
	for _, t := range tables {
		_, err := db.CopyFrom(ctx, t.name, t.columns, pgx.CopyFromSlice(len(requests), func(i int) ([]any, error) { return t.row(requests[i]), nil }))
		if err != nil {
			return fmt.Errorf("copy into %s: %w", t.name.Sanitize(), err)
		}
		if _, err := db.Exec(ctx, "ANALYZE "+t.name.Sanitize()); err != nil {
			return fmt.Errorf("analyze %s: %w", t.name.Sanitize(), err)
		}
	}
	return nil
}

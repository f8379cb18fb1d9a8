package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

// smoke is one run of the command: what was asked for, and what the steps have found so far.
type smoke struct {
	*session
	issuer, profile, domain string

	key *ecdsa.PrivateKey
	// id is the certificate's, and host its DNS name.
	id, host string
	// asked tells whether it may exist.
	asked   bool
	job     string
	order   string
	version int32
	// first is the place of the first event about it in the record.
	first int64
}

// named gives the certificate a name of its own.
func (k *smoke) named() {
	k.id = "smoke-" + strings.ToLower(rand.Text()[:12])
	k.host = k.id + "." + strings.TrimPrefix(k.domain, ".")
}

func (k *smoke) steps() []step {
	return []step{
		{"ready", k.ready, "look at the log of the service that is not ready"},
		{"create", k.create, "see what there is: certctl issuers list"},
		{"job", k.open, "events go from inventory to renewalscheduler: look at the logs of both"},
		{"issue", k.issue, "see whether the CA answers: certctl issuers test " + k.issuer + "\nand the logs of issuance and renewalscheduler"},
		{"download", k.download, "see what is stored: certctl certificates versions " + k.id},
		{"list", k.list, "the gateway takes entity tags from inventory: look at the logs of both"},
		{"audit", k.audit, "events come to audit from the other services: look at its log and at theirs"},
		{"verify", k.verifyRecord, "see the whole record: certctl audit verify"},
	}
}

// cleaning is done whatever the steps have come to.
func (k *smoke) cleaning(ctx context.Context) []step {
	k.late(ctx)
	byHand := "do it by hand: certctl certificates archive " + k.id
	steps := []step{{"archive", k.archive, byHand}}
	if k.version > 0 {
		steps = append([]step{{"revoke", k.revoke, "see: certctl certificates versions " + k.id}}, steps...)
	}
	return steps
}

// late sees whether the certificate was issued after the steps had given it up.
func (k *smoke) late(ctx context.Context) {
	if k.version > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if cert, err := k.certificate(ctx, k.id); err == nil { // if not, archive meets the same
		k.version = cert.GetCurrentVersion()
	}
}

func (k *smoke) certificates() inventoryv1.CertificateServiceClient {
	return inventoryv1.NewCertificateServiceClient(k.conn)
}

// over reads a path over REST, as a browser or a script does.
func (k *smoke) over(ctx context.Context, path, header, value string) (answered, error) {
	r, err := k.access.rest()
	if err != nil {
		return answered{}, err
	}
	defer r.close()
	answer, err := r.get(ctx, path, header, value)
	return answer, k.unreached(err)
}

// readiness is the answer of /ready.
type readiness struct {
	Services map[string]struct {
		Ready   bool   `json:"ready"`
		Message string `json:"message"`
	} `json:"services"`
}

func (k *smoke) ready(ctx context.Context) (string, error) {
	answer, err := k.over(ctx, "/ready", "", "")
	if err != nil {
		return "", err
	}
	var r readiness
	if err := json.Unmarshal(answer.body, &r); err != nil {
		return "", fmt.Errorf("/ready answered %s, and no JSON: %w", answer.text, err)
	}
	names := slices.Sorted(maps.Keys(r.Services))
	var not []string
	for _, name := range names {
		if s := r.Services[name]; !s.Ready {
			not = append(not, name+": "+s.Message)
		}
	}
	if answer.status != http.StatusOK || len(not) > 0 {
		return "", &Failure{Message: "/ready answered " + answer.text + "; " + strings.Join(not, "; "), Code: exitError}
	}
	return strings.Join(names, ", "), nil
}

func (k *smoke) create(ctx context.Context) (seen string, err error) {
	if k.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	create := bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.CreateCertificate)
	_, err = k.call(ctx, create, &inventoryv1.CreateCertificateRequest{Certificate: &inventoryv1.Certificate{
		Id: k.id, Name: k.id, DnsNames: []string{k.host}, IssuerId: k.issuer, ProfileId: k.profile,
	}})
	k.asked = !errs.IsKind(err, errs.Invalid, errs.PermissionDenied, errs.Unauthenticated)
	return k.host, err
}

// open waits until the certificate's job asks for a CSR.
func (k *smoke) open(ctx context.Context) (string, error) {
	job, err := k.firstJob(ctx, k.id)
	if err != nil {
		return "", err
	}
	k.job = job.GetId()
	err = k.until(ctx, func(ctx context.Context) (bool, error) {
		job, err := k.session.job(ctx, k.job)
		if err != nil {
			return false, err
		}
		k.pending(jobState(job), "")
		if ended(job) {
			return false, jobFailure(job)
		}
		return job.GetStatus() == schedulerv1.Job_AWAITING_CSR, nil
	})
	return k.job, err
}

// submit has the certificate issued for the key.
func (k *smoke) submit(ctx context.Context) error {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{k.host}}, k.key)
	if err != nil {
		return fmt.Errorf("make a CSR: %w", err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	submit := bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.SubmitCsr)
	_, err = k.call(ctx, submit, &schedulerv1.SubmitCsrRequest{CertificateId: k.id, CsrPem: string(csr)})
	return err
}

func (k *smoke) issue(ctx context.Context) (string, error) {
	if err := k.submit(ctx); err != nil {
		return "", err
	}
	if _, err := k.waitJob(ctx, k.job, goOn); err != nil {
		return "", err
	}
	cert, err := k.certificate(ctx, k.id)
	if err != nil {
		return "", err
	}
	if k.version = cert.GetCurrentVersion(); k.version == 0 {
		return "", &Failure{Message: "the job is done, and the certificate has no version", Code: exitError}
	}
	return fmt.Sprintf("version %d from %s", k.version, k.issuer), nil
}

func (k *smoke) download(ctx context.Context) (string, error) {
	resp, err := k.certificates().GetCertificateVersion(ctx, &inventoryv1.GetCertificateVersionRequest{CertificateId: k.id, Version: k.version})
	if err != nil {
		return "", err
	}
	k.order = resp.GetVersion().GetOrderId()
	body, err := k.certificates().DownloadCertificateVersion(ctx, &inventoryv1.DownloadCertificateVersionRequest{CertificateId: k.id, Version: k.version})
	if err != nil {
		return "", err
	}
	chain, err := parseCertificates(body.GetData())
	if err != nil {
		return "", fmt.Errorf("the download: %w", err)
	}
	if !k.key.PublicKey.Equal(chain[0].PublicKey) {
		return "", &Failure{Message: "the certificate is for another key than the CSR", Code: exitError}
	}
	return k.trusted(ctx, chain)
}

// trusted verifies a chain with the CA that the issuer publishes; an issuer that publishes none is taken at the word of the chain.
func (k *smoke) trusted(ctx context.Context, chain []*x509.Certificate) (string, error) {
	anchors, from := chain[1:], "the end of its chain: the issuer publishes no CA"
	body, err := issuancev1.NewCrlServiceClient(k.conn).GetCaCertificate(ctx, &issuancev1.GetCaCertificateRequest{IssuerId: k.issuer})
	if err != nil && !errs.IsKind(err, errs.NotFound) {
		return "", err
	}
	if err == nil {
		from = "the issuer's CA"
		if anchors, err = parseCertificates(body.GetData()); err != nil {
			return "", fmt.Errorf("the issuer's CA: %w", err)
		}
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range anchors {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{DNSName: k.host, Roots: roots, Intermediates: intermediates, CurrentTime: k.cfg.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return "", fmt.Errorf("the chain does not hold: %w", err)
	}
	return "the key fits, and the chain leads to " + from, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(bytes.TrimSpace(data)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate is in it")
	}
	return all, nil
}

// list asks for the same list twice. Others may change it in between: then it is asked for again.
func (k *smoke) list(ctx context.Context) (string, error) {
	path := "/api/v1/certificates?name=" + url.QueryEscape(k.id)
	tag, times := "", 0
	err := k.until(ctx, func(ctx context.Context) (bool, error) {
		times++
		answer, err := k.over(ctx, path, "If-None-Match", tag)
		switch {
		case err != nil:
			return false, err
		case answer.status == http.StatusNotModified && tag != "":
			return true, nil
		case answer.status != http.StatusOK:
			return false, &Failure{Message: "the list answered " + answer.text, Code: exitError}
		}
		if tag = answer.header.Get("ETag"); tag == "" || !bytes.Contains(answer.body, []byte(k.id)) {
			return false, &Failure{Message: fmt.Sprintf("the list has ETag %q, and these %d bytes: %.200s", tag, len(answer.body), answer.body), Code: exitError}
		}
		k.pending("the list changes all the time", "")
		return false, nil
	})
	return fmt.Sprintf("304 at request %d", times), err
}

// audit waits for an event of each service that had to do with the certificate.
func (k *smoke) audit(ctx context.Context) (string, error) {
	seen := 0
	for _, event := range []struct{ resource, action string }{
		{k.id, "certificate.created"}, {k.job, "job.created"}, {k.order, "order.issued"}, {k.id, "version.stored"}, {k.job, "job.completed"},
	} {
		sequence, err := k.recorded(ctx, event.resource, event.action)
		if err != nil {
			return "", err
		}
		seen++
		if k.first == 0 || sequence < k.first {
			k.first = sequence
		}
	}
	return fmt.Sprintf("%d events", seen), nil
}

func (k *smoke) recorded(ctx context.Context, resource, action string) (sequence int64, err error) {
	events := auditv1.NewAuditServiceClient(k.conn)
	err = k.until(ctx, func(ctx context.Context) (bool, error) {
		k.pending(action+" of "+resource+" is not on the record", "")
		resp, err := events.ListEvents(ctx, &auditv1.ListEventsRequest{ResourceId: resource, Action: action, PageSize: 1})
		if err != nil || len(resp.GetEvents()) == 0 {
			return false, err
		}
		sequence = resp.GetEvents()[0].GetSequence()
		return true, nil
	})
	return sequence, err
}

// verifyRecord verifies the record from the first event about the certificate on: all of it may take long.
func (k *smoke) verifyRecord(ctx context.Context) (string, error) {
	resp, err := auditv1.NewAuditServiceClient(k.conn).VerifyEvents(ctx, &auditv1.VerifyEventsRequest{FirstSequence: k.first})
	if err != nil {
		return "", err
	}
	if !resp.GetValid() {
		return "", notIntact(resp.GetFirstInvalidEvent())
	}
	return fmt.Sprintf("intact from event %d to %d", k.first, resp.GetHead().GetSequence()), nil
}

// revoke revokes, and waits until the CA has.
func (k *smoke) revoke(ctx context.Context) (string, error) {
	revoke := bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.RevokeCertificate)
	if _, err := k.call(ctx, revoke, &inventoryv1.RevokeCertificateRequest{Id: k.id}); err != nil {
		return "", err
	}
	seen := "the CA has revoked it"
	err := k.until(ctx, func(ctx context.Context) (bool, error) {
		resp, err := k.certificates().GetCertificateVersion(ctx, &inventoryv1.GetCertificateVersionRequest{CertificateId: k.id, Version: k.version})
		if err != nil {
			return false, err
		}
		v := resp.GetVersion()
		k.pending(fmt.Sprintf("the revocation is %s %s", v.GetRevocationState(), v.GetRevocationError()), "")
		switch v.GetRevocationState() {
		case inventoryv1.Revocation_REVOKED:
			return true, nil
		case inventoryv1.Revocation_AWAITING_APPROVAL:
			seen = "somebody at the CA has to approve it"
			return true, nil
		case inventoryv1.Revocation_FAILED:
			return false, &Failure{Message: "the CA has not revoked it: " + v.GetRevocationError(), Code: exitError}
		default:
			return false, nil
		}
	})
	return seen, err
}

func (k *smoke) archive(ctx context.Context) (string, error) {
	archive := bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.DeleteCertificate)
	_, err := k.call(ctx, archive, &inventoryv1.DeleteCertificateRequest{Id: k.id})
	if errs.IsKind(err, errs.NotFound) {
		return "it was not there", nil // its creation failed
	}
	return k.id + " stays readable", err
}

package client

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

func listCertificates() method {
	return bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.ListCertificates)
}

func getCertificate() method {
	return bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.GetCertificate)
}

func (a *app) certificateIDs() cobra.CompletionFunc { return a.ids(listCertificates(), "name") }

func (a *app) certificates() *cobra.Command {
	e := a.certificateEditor()
	return group("certificates", "Certificates: what is wanted, what was issued, and where it is served",
		[]string{"certificate", "certs", "cert"},
		a.list(listing{method: listCertificates(), command: cobra.Command{Short: "List certificates"}, filters: a.certificateFilters()}),
		a.get(getCertificate(), a.certificateIDs(), "certificate"),
		a.createCommand(e), a.updateCommand(e),
		a.renew(), a.submitCSR(), a.deploy(), a.revoke(), a.archive(), a.explainCommand(), a.versions(), a.download())
}

func (a *app) certificateFilters() []field.Field {
	return []field.Field{
		{Path: "status", Help: "only of these states"},
		{Path: "name", Help: "only with this in name, common name or a subject alternative name"},
		{Path: "issuer_id", Flag: "issuer", Help: "only of this issuer", Complete: a.flagIDs(listIssuers(), "name")},
		{Path: "profile_id", Flag: "profile", Help: "only of this profile", Complete: a.flagIDs(listProfiles(), "name")},
		{Path: "policy_id", Flag: "policy", Help: "only of this policy", Complete: a.flagIDs(listPolicies(), "name")},
		{Path: "target_id", Flag: "target", Help: "only on this target", Complete: a.flagIDs(listTargets(), "name")},
		{Path: "agent_id", Flag: "agent", Help: "only with a target of this agent", Complete: a.flagIDs(listAgents(), "name")},
		{Path: "owner", Help: "only of this owner"},
		{Path: "team", Help: "only of this team"},
		{Path: "environment", Help: "only of this environment"},
		{Path: "label", Help: "only with these labels"},
		{Path: "serial_number", Flag: "serial", Help: "only with this serial number, hex"},
		{Path: "fingerprint_sha256", Flag: "fingerprint", Help: "only with this SHA-256 fingerprint, hex"},
		{Path: "expires_before", Help: "only those that end before, such as +30d"},
		{Path: "expires_after", Help: "only those that end after"},
	}
}

func (a *app) certificateEditor() editor {
	client := inventoryv1.NewCertificateServiceClient
	return editor{
		kind: "certificate", of: a.certificateIDs(), get: getCertificate(), follow: followCreated,
		create: bind(client, inventoryv1.CertificateServiceClient.CreateCertificate),
		update: bind(client, inventoryv1.CertificateServiceClient.UpdateCertificate),
		fields: []field.Field{
			{Path: "common_name", Help: "subject common name"},
			{Path: "dns_names", Flag: "dns", Help: "DNS names"},
			{Path: "ip_addresses", Flag: "ip", Help: "IP addresses"},
			{Path: "email_addresses", Flag: "email", Help: "e-mail addresses"},
			{Path: "uris", Flag: "uri", Help: "URIs"},
			{Path: "issuer_id", Flag: "issuer", Help: "issuer", Complete: a.flagIDs(listIssuers(), "name")},
			{Path: "profile_id", Flag: "profile", Help: "profile (default prof-default)", Complete: a.flagIDs(listProfiles(), "name")},
			{Path: "policy_id", Flag: "policy", Help: "renewal policy (default pol-default)", Complete: a.flagIDs(listPolicies(), "name")},
			{Path: "target_ids", Flag: "target", Help: "targets", Complete: a.flagIDs(listTargets(), "name")},
			{Path: "key_algorithm", Help: "algorithm and size of the key"},
			{Path: "owner", Help: "who answers for it"},
			{Path: "team", Help: "team"},
			{Path: "environment", Help: "environment"},
			{Path: "labels", Flag: "label", Help: "labels"},
		},
		example: "  certctl certificates create --name web --dns www.example.com --issuer iss-local --target target-web --wait\n" +
			"  certctl certificates create -f web.yaml",
	}
}

func (a *app) renew() *cobra.Command {
	return a.verb(verb{
		method:  bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.RenewCertificate),
		command: cobra.Command{Use: "renew ID", Short: "Have a new version issued, with a new key"},
		of:      a.certificateIDs(), follow: followJob,
		fields: []field.Field{{Path: "force", Help: "although it is not due"}},
	})
}

func (a *app) submitCSR() *cobra.Command {
	v := verb{
		method: bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.SubmitCsr),
		command: cobra.Command{
			Use: "csr ID -f FILE", Short: "Have it issued for a key that you keep, by a CSR",
			Long: "Have it issued for a key that you keep: send a PKCS #10 request in PEM with exactly the names of the certificate.",
		},
		of: a.certificateIDs(), follow: followJob,
	}
	var path string
	v.prepare = func(_ context.Context, s *session, req proto.Message) error {
		b, err := s.readInput(path)
		if err != nil {
			return err
		}
		setText(req, "csr_pem", string(b))
		return nil
	}
	c := a.verb(v)
	c.Flags().StringVarP(&path, fileFlag, "f", "", "file with the CSR, PEM; - is standard input")
	required(c, fileFlag)
	return c
}

// required makes a flag one that must be given.
func required(c *cobra.Command, flag string) {
	if err := c.MarkFlagRequired(flag); err != nil {
		panic(err)
	}
}

func (a *app) deploy() *cobra.Command {
	return a.verb(verb{
		method:  bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.DeployCertificate),
		command: cobra.Command{Use: "deploy ID", Short: "Put the current version on its targets again"},
		of:      a.certificateIDs(), follow: followJobs,
		fields: []field.Field{{Path: "target_ids", Flag: "target", Help: "only on these targets", Complete: a.flagIDs(listTargets(), "name")}},
		show: func(s *session, _ string, answer proto.Message) error {
			return s.printer().Rows(answer, items(answer), columnsOfList(answer))
		},
	})
}

func (a *app) revoke() *cobra.Command {
	c := a.verb(verb{
		method: bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.RevokeCertificate),
		command: cobra.Command{
			Use: "revoke ID --reason REASON", Short: "Revoke all its versions, or one",
			Example: "  certctl certificates revoke cert-web --reason key-compromise",
		},
		of: a.certificateIDs(), question: "Revoke %s? This cannot be taken back.", show: revoked,
		fields: []field.Field{
			{Path: "reason", Help: "reason (RFC 5280, section 5.3.1)"},
			{Path: "version", Help: "this version only"},
		},
	})
	required(c, "reason")
	return c
}

// revoked shows a revocation, and tells when the CA has not revoked yet.
func revoked(s *session, id string, answer proto.Message) error {
	if err := s.describe(answer); err != nil {
		return err
	}
	r, _ := answer.(*inventoryv1.Revocation)
	see := "see how it goes with: certctl certificates versions " + id
	switch r.GetState() {
	case inventoryv1.Revocation_PENDING:
		s.note("the revocation is stored, and the CA is told until it has revoked; %s", see)
	case inventoryv1.Revocation_AWAITING_APPROVAL:
		s.note("nothing is revoked until somebody at the CA has approved it; %s", see)
	case inventoryv1.Revocation_FAILED:
		return &Failure{
			Message: "the CA has not revoked " + id,
			Hint:    "see why with: certctl certificates versions " + id + "\nthen repeat the command, for another reason perhaps",
			Code:    exitError,
		}
	default:
	}
	return nil
}

func (a *app) archive() *cobra.Command {
	return a.verb(verb{
		method:  bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.DeleteCertificate),
		command: cobra.Command{Use: "archive ID", Short: "No longer renew and deploy it; it stays readable", Aliases: []string{"delete"}},
		of:      a.certificateIDs(), question: "Archive %s? It will no longer be renewed.",
	})
}

func (a *app) versions() *cobra.Command {
	return a.list(listing{
		method: bind(inventoryv1.NewCertificateServiceClient, inventoryv1.CertificateServiceClient.ListCertificateVersions),
		parent: true,
		command: cobra.Command{
			Use: "versions ID", Short: "List what was issued, newest first", ValidArgsFunction: a.certificateIDs(),
		},
	})
}

func (a *app) download() *cobra.Command {
	c := &cobra.Command{
		Use: "download ID", Short: "Print leaf and chain in PEM", ValidArgsFunction: a.certificateIDs(),
		Example: "  certctl certificates download cert-web --to fullchain.pem",
	}
	number := c.Flags().Int32("version", 0, "version (default the current one)")
	path := c.Flags().String("to", "", "file to write (default standard output)")
	return a.leaf(c, cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		return s.download(ctx, args[0], *number, *path)
	})
}

func (s *session) download(ctx context.Context, id string, number int32, path string) error {
	certificates := inventoryv1.NewCertificateServiceClient(s.conn)
	if number == 0 {
		resp, err := certificates.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Id: id})
		if err != nil {
			return err
		}
		if number = resp.GetCertificate().GetCurrentVersion(); number == 0 {
			return &Failure{Message: "nothing is issued yet for " + id, Hint: "see why: certctl certificates explain " + id, Code: exitNotFound}
		}
	}
	body, err := certificates.DownloadCertificateVersion(ctx, &inventoryv1.DownloadCertificateVersionRequest{CertificateId: id, Version: number})
	if err != nil {
		return err
	}
	if path == "" {
		_, err = s.out().Write(body.GetData())
		return err
	}
	if err := os.WriteFile(path, body.GetData(), 0o644); err != nil { //nolint:gosec // certificates are public
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

func (a *app) explainCommand() *cobra.Command {
	return a.verb(verb{
		method:  bind(schedulerv1.NewJobServiceClient, schedulerv1.JobServiceClient.ExplainCertificate),
		command: cobra.Command{Use: "explain ID", Short: "Say why it is as it is, what happens next, and what is in the way"},
		of:      a.certificateIDs(), show: explained,
	})
}

func explained(s *session, _ string, answer proto.Message) error {
	e, ok := answer.(*schedulerv1.ExplainCertificateResponse)
	if !ok || s.format != show.Table {
		return s.describe(answer)
	}
	lines := append([]string{e.GetSummary(), ""}, explanation(e, s)...)
	for i := range lines {
		lines[i] = cleanLines(lines[i])
	}
	_, err := fmt.Fprintln(s.out(), strings.Join(lines, "\n"))
	return err
}

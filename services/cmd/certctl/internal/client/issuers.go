package client

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

func listIssuers() method {
	return bind(issuancev1.NewIssuerServiceClient, issuancev1.IssuerServiceClient.ListIssuers)
}

func listProfiles() method {
	return bind(issuancev1.NewProfileServiceClient, issuancev1.ProfileServiceClient.ListProfiles)
}

func (a *app) issuers() *cobra.Command {
	client, ids := issuancev1.NewIssuerServiceClient, a.ids(listIssuers(), "name")
	get := bind(client, issuancev1.IssuerServiceClient.GetIssuer)
	e := editor{
		kind: "issuer", of: ids, get: get, configured: true, show: stored,
		create:     bind(client, issuancev1.IssuerServiceClient.CreateIssuer),
		update:     bind(client, issuancev1.IssuerServiceClient.UpdateIssuer),
		createOnly: []field.Field{{Path: "type", Help: "kind of CA, such as local or digicert"}},
		fields: []field.Field{
			{Path: "enabled", Help: "whether it is used"},
			{Path: "pending_deadline", Help: "how long an order may be pending at the CA before it has failed, such as 14d (default as the CA's connector says)"},
		},
		example: "  certctl issuers create --id digicert --name DigiCert --type digicert --config @digicert.json --set-file api_key=digicert.key\n" +
			"  certctl issuers create --name 'Local CA' --type local",
	}
	return group("issuers", "Issuers: connections to CAs", []string{"issuer"},
		a.list(listing{
			method: listIssuers(), command: cobra.Command{Short: "List issuers"},
			filters: []field.Field{{Path: "type", Help: "only of this type"}},
		}),
		a.get(get, ids, "issuer"), a.createCommand(e), a.updateCommand(e),
		a.remove(bind(client, issuancev1.IssuerServiceClient.DeleteIssuer), ids, "issuer"),
		a.verb(verb{
			method: bind(client, issuancev1.IssuerServiceClient.TestIssuer), of: ids,
			command: cobra.Command{Use: "test ID", Short: "Try the connection to the CA; nothing is bought"}, show: tested,
		}))
}

func (a *app) profiles() *cobra.Command {
	client, ids := issuancev1.NewProfileServiceClient, a.ids(listProfiles(), "name")
	get := bind(client, issuancev1.ProfileServiceClient.GetProfile)
	e := editor{
		kind: "profile", of: ids, get: get,
		create: bind(client, issuancev1.ProfileServiceClient.CreateProfile),
		update: bind(client, issuancev1.ProfileServiceClient.UpdateProfile),
		fields: []field.Field{
			{Path: "description", Help: "what it is for"},
			{Path: "allowed_san_patterns", Flag: "allow-san", Help: `what each name must match, such as "*.example.com" or "10.0.0.0/8"`},
			{Path: "allow_wildcards", Help: "whether wildcard names are allowed"},
			{Path: "allowed_key_algorithms", Flag: "allow-key-algorithm", Help: "key algorithms that are allowed"},
			{Path: "extended_key_usages", Flag: "eku", Help: "extended key usages"},
			{Path: "max_validity", Help: "lifetime of certificates, such as 90d or 1h"},
			{Path: "requires_approval", Help: "whether somebody else must approve each issue and renewal"},
			{Path: "approval_timeout", Help: "how long an approval may take"},
		},
	}
	return group("profiles", "Profiles: what certificates may look like", []string{"profile"},
		a.list(listing{method: listProfiles(), command: cobra.Command{Short: "List profiles"}}),
		a.get(get, ids, "profile"), a.createCommand(e), a.updateCommand(e),
		a.remove(bind(client, issuancev1.ProfileServiceClient.DeleteProfile), ids, "profile"))
}

// stored shows a new issuer, and tells when its CA could not be asked: that is no reason to refuse it.
func stored(s *session, _ string, answer proto.Message) error {
	if err := s.print(answer); err != nil {
		return err
	}
	if i, ok := answer.(*issuancev1.Issuer); ok && i.GetStatus() == issuancev1.Issuer_FAILING {
		s.note("issuer %s is stored, and does not work yet: %s", i.GetId(), i.GetLastError())
		s.note("try again with: certctl issuers test %s", i.GetId())
	}
	return nil
}

// tested shows an issuer after its test; one that does not work is an error.
func tested(s *session, id string, answer proto.Message) error {
	if err := s.print(answer); err != nil {
		return err
	}
	issuer, ok := answer.(*issuancev1.Issuer)
	if !ok || issuer.GetStatus() != issuancev1.Issuer_FAILING {
		return nil
	}
	return &Failure{
		Message: "issuer " + id + " does not work: " + issuer.GetLastError(),
		Hint: "if its settings are wrong, mend them with: certctl issuers update " + id + " --set KEY=VALUE\n" +
			"secrets come from a file: --set-file KEY=PATH",
		Code: exitError,
	}
}

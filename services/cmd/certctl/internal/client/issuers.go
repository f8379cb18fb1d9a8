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

func listOrders() method {
	return bind(issuancev1.NewOrderServiceClient, issuancev1.OrderServiceClient.ListOrders)
}

func (a *app) issuers() *cobra.Command {
	client, ids := issuancev1.NewIssuerServiceClient, a.ids(listIssuers(), "name")
	get := bind(client, issuancev1.IssuerServiceClient.GetIssuer)
	e := editor{
		kind: "issuer", of: ids, get: get, configured: true,
		create:     bind(client, issuancev1.IssuerServiceClient.CreateIssuer),
		update:     bind(client, issuancev1.IssuerServiceClient.UpdateIssuer),
		createOnly: []field.Field{{Path: "type", Help: "kind of CA, such as local"}},
		fields:     []field.Field{{Path: "enabled", Help: "whether it is used"}},
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

func (a *app) orders() *cobra.Command {
	client, ids := issuancev1.NewOrderServiceClient, a.ids(listOrders(), "status")
	return group("orders", "Orders: the journal of what was asked of CAs", []string{"order"},
		a.list(listing{
			method: listOrders(), command: cobra.Command{Short: "List orders"},
			filters: []field.Field{
				{Path: "status", Help: "only of these states"},
				{Path: "certificate_id", Flag: "certificate", Help: "only of this certificate", Complete: a.flagIDs(listCertificates(), "name")},
				{Path: "issuer_id", Flag: "issuer", Help: "only of this issuer", Complete: a.flagIDs(listIssuers(), "name")},
				{Path: "job_id", Flag: "job", Help: "only of this job", Complete: a.flagIDs(listJobs(), "type")},
				{Path: "created_before", Help: "only those made before, such as -1h"},
				{Path: "created_after", Help: "only those made after"},
			},
		}),
		a.get(bind(client, issuancev1.OrderServiceClient.GetOrder), ids, "order"),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.PollOrder), of: ids,
			command: cobra.Command{Use: "poll ID", Short: "Ask the CA now what became of it"},
		}),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.CancelOrder), of: ids, question: "Give order %s up?",
			command: cobra.Command{Use: "cancel ID", Short: "Give a pending order up"},
		}))
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
		Hint:    "mend its configuration with: certctl issuers update " + id + " --set KEY=VALUE",
		Code:    exitError,
	}
}

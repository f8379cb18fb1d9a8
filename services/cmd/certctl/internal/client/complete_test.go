package client_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// proposals are what a shell is given.
func proposals(t *testing.T, g *gateway, args ...string) []string {
	t.Helper()
	r := g.run(t, append([]string{"__complete"}, args...)...)
	require.NoError(t, r.failure)
	var out []string
	for line := range strings.Lines(r.out) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") {
			out = append(out, line)
		}
	}
	return out
}

func TestIDsAreCompletedFromTheServer(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, inventoryv1.CertificateService_ListCertificates_FullMethodName, &inventoryv1.ListCertificatesRequest{},
		&inventoryv1.ListCertificatesResponse{Certificates: []*inventoryv1.Certificate{{Id: "cert-a", Name: "web"}, {Id: "cert-b", Name: "mail"}, {Id: "other"}}})
	answer(g, issuancev1.IssuerService_ListIssuers_FullMethodName, &issuancev1.ListIssuersRequest{},
		&issuancev1.ListIssuersResponse{Issuers: []*issuancev1.Issuer{{Id: "iss-local", Name: "local"}}})

	require.Equal(t, []string{"cert-a\tweb", "cert-b\tmail"}, proposals(t, g, "certificates", "get", "cert-"))
	require.Empty(t, proposals(t, g, "certificates", "get", "cert-a", ""))
	require.Equal(t, []string{"iss-local\tlocal"}, proposals(t, g, "certificates", "create", "--issuer", ""))
}

func TestNamesAndFormatsAreCompletedWithoutAServer(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	require.Equal(t, []string{"PENDING", "ACTIVE", "EXPIRED", "REVOKED", "ARCHIVED"}, proposals(t, g, "certificates", "list", "--status", ""))
	require.Equal(t, []string{"ACTIVE,EXPIRED"}, proposals(t, g, "certificates", "list", "--status", "ACTIVE,E"))
	require.Equal(t, []string{"table", "json", "yaml", "name"}, proposals(t, g, "jobs", "list", "-o", ""))
	require.Contains(t, proposals(t, g, "certificates", "re"), "renew\tHave a new version issued, with a new key")
	require.Empty(t, g.calls)
}

func TestCompletionWithoutAServerIsQuiet(t *testing.T) {
	t.Parallel()
	r := program{environ: []string{"CERTCTL_DATA_DIR=" + t.TempDir()}}.run(t, "__complete", "certificates", "get", "")
	require.NoError(t, r.failure)
	require.Equal(t, ":1\n", r.out)
}

func TestEveryShellHasAScript(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := program{}.run(t, "completion", shell)
		require.NoError(t, r.failure)
		require.Contains(t, r.out, "__complete")
	}
}

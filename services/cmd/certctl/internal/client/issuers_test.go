package client_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

func echoIssuers(g *gateway, status issuancev1.Issuer_Status, lastError string) {
	on(g, issuancev1.IssuerService_CreateIssuer_FullMethodName, func(r *issuancev1.CreateIssuerRequest) (*issuancev1.CreateIssuerResponse, error) {
		i, _ := proto.Clone(r.GetIssuer()).(*issuancev1.Issuer)
		i.Status, i.LastError = status, lastError
		return &issuancev1.CreateIssuerResponse{Issuer: i}, nil
	})
	on(g, issuancev1.IssuerService_UpdateIssuer_FullMethodName, func(r *issuancev1.UpdateIssuerRequest) (*issuancev1.UpdateIssuerResponse, error) {
		return &issuancev1.UpdateIssuerResponse{Issuer: r.GetIssuer()}, nil
	})
}

func createdIssuer(t *testing.T, g *gateway) *issuancev1.Issuer {
	t.Helper()
	all := requests[*issuancev1.CreateIssuerRequest](g, issuancev1.IssuerService_CreateIssuer_FullMethodName)
	require.NotEmpty(t, all)
	return all[len(all)-1].GetIssuer()
}

func TestAnIssuerIsCreatedWithItsConfigurationFromAFile(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoIssuers(g, issuancev1.Issuer_OK, "")
	path := filepath.Join(t.TempDir(), "digicert.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"organization_id": 112233, "product_name_id": "ssl_basic", "skip_approval": true}`), 0o600))

	r := g.ok(t, "issuers", "create", "--id", "digicert", "--name", "DigiCert", "--type", "digicert", "--config", "@"+path,
		"--set", "product_name_id=ssl_plus", "--pending-deadline", "14d")

	require.Empty(t, r.err)
	want := &issuancev1.Issuer{
		Id: "digicert", Name: "DigiCert", Type: "digicert", PendingDeadline: durationpb.New(14 * day),
		Config: structOf(t, map[string]any{"organization_id": 112233, "product_name_id": "ssl_plus", "skip_approval": true}),
	}
	require.True(t, proto.Equal(want, createdIssuer(t, g)), "got %v", createdIssuer(t, g))

	p := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}, input: "a: 1\n"}
	require.NoError(t, p.run(t, "issuers", "create", "--config", "@-").failure)
	require.True(t, proto.Equal(structOf(t, map[string]any{"a": 1}), createdIssuer(t, g).GetConfig()))
	g.ok(t, "issuers", "create", "--config", `{"b":[true]}`)
	require.True(t, proto.Equal(structOf(t, map[string]any{"b": []any{true}}), createdIssuer(t, g).GetConfig()))
}

func TestAConfigurationThatIsNotRightIsAUsageError(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for config, want := range map[string]string{
		"@/nowhere.json": "/nowhere.json",
		"[1]":            "--config: ",
		"{":              "--config: ",
		" ":              "--config: there is no resource in it",
	} {
		r := g.run(t, "issuers", "create", "--config", config)
		require.ErrorContains(t, r.failure, want, config)
		require.Equal(t, 2, r.code, config)
	}
	require.Empty(t, g.calls)
}

func TestAWholeConfigurationReplacesTheOneThereWas(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoIssuers(g, issuancev1.Issuer_OK, "")

	g.ok(t, "issuers", "update", "digicert", "--config", `{"a":"1"}`, "--set", "b=2")

	got := requests[*issuancev1.UpdateIssuerRequest](g, issuancev1.IssuerService_UpdateIssuer_FullMethodName)[0]
	require.Equal(t, []string{"config"}, got.GetUpdateMask().GetPaths())
	require.True(t, proto.Equal(structOf(t, map[string]any{"a": "1", "b": "2"}), got.GetIssuer().GetConfig()), "got %v", got)
	require.Zero(t, got.GetIfRevision())
}

func TestASettingThatTheCADoesNotTakeIsNamed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	on(g, issuancev1.IssuerService_CreateIssuer_FullMethodName, func(*issuancev1.CreateIssuerRequest) (*issuancev1.CreateIssuerResponse, error) {
		return nil, errs.Field("config.api_key", "the CA does not accept the credentials")
	})

	r := g.run(t, "issuers", "create", "--name", "DigiCert", "--type", "digicert", "--set", "api_key=wrong")

	require.Equal(t, 1, r.code)
	require.EqualError(t, r.failure, "the server refused the request:\n  config.api_key: the CA does not accept the credentials")
}

func TestAnIssuerWhoseCACannotBeAskedIsStoredAndSaysSo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	echoIssuers(g, issuancev1.Issuer_FAILING, "the CA is not available")

	r := g.ok(t, "issuers", "create", "--id", "digicert", "--name", "DigiCert", "--type", "digicert")

	golden(t, `
	ID        NAME      TYPE      ENABLED  STATUS   TESTED
	digicert  DigiCert  digicert  no       FAILING  -
	`, r.out)
	golden(t, `
	issuer digicert is stored, and does not work yet: the CA is not available
	try again with: certctl issuers test digicert
	`, r.err)
}

func TestATestThatFailsIsAnErrorWithTheReason(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.IssuerService_TestIssuer_FullMethodName, &issuancev1.TestIssuerRequest{}, &issuancev1.TestIssuerResponse{Issuer: &issuancev1.Issuer{
		Id: "digicert", Name: "DigiCert", Type: "digicert", Status: issuancev1.Issuer_FAILING, LastError: "the CA does not accept the credentials", LastTestTime: at(-time.Second),
	}})

	r := g.run(t, "issuers", "test", "digicert")

	require.Equal(t, 1, r.code)
	require.Contains(t, r.out, "FAILING")
	require.EqualError(t, r.failure, "issuer digicert does not work: the CA does not accept the credentials\n"+
		"if its settings are wrong, mend them with: certctl issuers update digicert --set KEY=VALUE\nsecrets come from a file: --set-file KEY=PATH")
}

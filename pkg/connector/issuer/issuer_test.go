package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/catalog"
	"github.com/certctl/certctl/pkg/errs"
)

func TestOutcomeIsThatOfTheOutermostTypedError(t *testing.T) {
	t.Parallel()
	permanent := issuer.Permanent("NO", "no")
	retry := issuer.RetryAfter(time.Minute, errors.New("busy"))
	unknown := issuer.UnknownOutcome(issuer.Ref{"id": "1"}, errors.New("reset"))
	for _, c := range []struct {
		err  error
		want issuer.Outcome
	}{
		{permanent, issuer.OutcomePermanent},
		{issuer.Misconfigured("NO", "no"), issuer.OutcomePermanent},
		{retry, issuer.OutcomeRetry},
		{unknown, issuer.OutcomeUnknown},
		{fmt.Errorf("submit: %w", retry), issuer.OutcomeRetry},
		{issuer.UnknownOutcome(nil, permanent), issuer.OutcomeUnknown},
		{issuer.RetryAfter(0, unknown), issuer.OutcomeRetry},
		{errors.Join(permanent), issuer.OutcomePermanent},
		{errors.Join(permanent, retry), issuer.OutcomeRetry},
		{errors.Join(permanent, errors.New("disk full")), issuer.OutcomeUnknown},
		{errors.New("anything"), issuer.OutcomeUnknown},
		{context.DeadlineExceeded, issuer.OutcomeUnknown},
		{nil, issuer.OutcomeUnknown},
	} {
		require.Equal(t, c.want, issuer.OutcomeOf(c.err), "%v", c.err)
	}
	d, ok := issuer.RetryDelay(fmt.Errorf("poll: %w", retry))
	require.True(t, ok)
	require.Equal(t, time.Minute, d)
	_, ok = issuer.RetryDelay(issuer.RetryAfter(-time.Minute, nil))
	require.False(t, ok)
	e, ok := issuer.AsUnknownOutcome(fmt.Errorf("submit: %w", unknown))
	require.True(t, ok)
	require.Equal(t, issuer.Ref{"id": "1"}, e.Ref)
}

func TestSerialNumberHasOneForm(t *testing.T) {
	t.Parallel()
	for range 200 {
		n, err := issuer.NewSerialNumber()
		require.NoError(t, err)
		require.LessOrEqual(t, n.BitLen(), 128)
		again, err := issuer.ParseSerial(issuer.FormatSerial(n))
		require.NoError(t, err)
		require.Zero(t, n.Cmp(again))
	}
	for _, bad := range []string{"", "0", "-1", "0a", "A", "+1", "0x1", "1 ", "1_0", "g", new(big.Int).Lsh(big.NewInt(1), 159).Text(16)} {
		_, err := issuer.ParseSerial(bad)
		require.Error(t, err, bad)
	}
}

func TestReasonsAreThoseOfRFC5280(t *testing.T) {
	t.Parallel()
	var valid []issuer.Reason
	for r := range issuer.Reason(20) {
		if r.Valid() {
			valid = append(valid, r)
		}
	}
	require.Equal(t, []issuer.Reason{0, 1, 2, 3, 4, 5, 6, 9, 10}, valid)
	require.Equal(t, "keyCompromise", issuer.KeyCompromise.String())
	require.Equal(t, "reason 7", issuer.Reason(7).String())
}

func TestSecretsAreTakenOutOfSettings(t *testing.T) {
	t.Parallel()
	typ := issuer.Type{SecretFields: []string{"api_key", "password"}}
	public, secrets, err := typ.SplitSecrets(json.RawMessage(`{"url":"https://ca","api_key":"s3cret","password":null}`))
	require.NoError(t, err)
	require.JSONEq(t, `{"url":"https://ca"}`, string(public))
	require.Len(t, secrets, 1)
	require.Equal(t, "s3cret", secrets["api_key"].Reveal())
	_, _, err = typ.SplitSecrets(json.RawMessage(`{"api_key":123456}`))
	require.Equal(t, "api_key", errs.From(err).Violations()[0].Field)
	require.NotContains(t, err.Error(), "123456")
}

func TestSettingsAreReadStrictly(t *testing.T) {
	t.Parallel()
	var into struct {
		URL string `json:"url"`
	}
	require.NoError(t, issuer.Decode(nil, &into))
	require.NoError(t, issuer.Decode(json.RawMessage(` {"url":"x"} `), &into))
	for _, bad := range []string{`[]`, `null`, `"x"`, `{"url":1}`, `{"other":1}`, `{"url":"x"}{}`, `{"url":"x"}]`, `{`} {
		require.Equal(t, errs.Invalid, errs.KindOf(issuer.Decode(json.RawMessage(bad), &into)), bad)
	}
	require.Error(t, issuer.Decode(make(json.RawMessage, issuer.MaxSettings+1), &into))
}

func TestTypesOfTheCatalogAreWhole(t *testing.T) {
	t.Parallel()
	types := catalog.Types()
	seen := map[string]bool{}
	for _, typ := range types {
		require.NotNil(t, typ.Validate, typ.Name)
		require.NotNil(t, typ.New, typ.Name)
		require.False(t, seen[typ.Name], typ.Name)
		seen[typ.Name] = true
		found, ok := types.Lookup(typ.Name)
		require.True(t, ok)
		require.Equal(t, typ.Name, found.Name)
	}
	_, ok := types.Lookup("LOCAL")
	require.False(t, ok)
	require.Contains(t, types.Names(), "local")
}

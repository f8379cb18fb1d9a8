package auth_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	one   = "first-key-0123456789"
	two   = "second-key-0123456789"
	three = "third:key:0123456789"
)

func TestKeysAreFoundWithTheirNames(t *testing.T) {
	t.Parallel()
	keys, err := auth.Parse(secretbox.NewSecret(one + ", dash:viewer:" + two + ",,ops@example.com:auditor:" + three + ",dash:viewer:" + two + "-new"))
	require.NoError(t, err)
	for token, want := range map[string]rpcctx.Caller{
		one:          {Type: rpcctx.User, ID: "admin-1", Role: rpcctx.RoleAdmin},
		two:          {Type: rpcctx.User, ID: "dash", Role: rpcctx.RoleViewer},
		two + "-new": {Type: rpcctx.User, ID: "dash", Role: rpcctx.RoleViewer},
		three:        {Type: rpcctx.User, ID: "ops@example.com", Role: rpcctx.RoleAuditor},
	} {
		got, ok := keys.Lookup(token)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	for _, token := range []string{"", one[1:], one + "x", "dash:viewer:" + two, " " + one} {
		_, ok := keys.Lookup(token)
		require.False(t, ok, token)
	}
	require.NotContains(t, fmt.Sprintf("%+v", keys), one)
}

func TestListsThatCannotBeMeantAreRefusedWithoutShowingKeys(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"":                      "no API key",
		" , ":                   "no API key",
		"fifteen-bytes-x":       "API key 1: the key has 15 bytes",
		one + ",x:viewer:short": "API key 2: the key has 5 bytes",
		"name:root:" + two:      "name:role:key",
		"name:agent:" + two:     "name:role:key",
		"name:peer:" + two:      "name:role:key",
		"name:" + two:           "name:role:key",
		":admin:" + two:         "the name",
		"-x:admin:" + two:       "the name",
		strings.Repeat("n", 65) + ":admin:" + two: "the name",
		one + "," + one:                       "API key 2: the same key is there twice",
		"a:admin:" + one + ",b:viewer:" + one: "twice",
		"a:admin:" + one + ",a:viewer:" + two: "another role",
		"with space in the key":               "do not fit in a header",
		"schlüssel-mit-umlaut":                "do not fit in a header",
	} {
		_, err := auth.Parse(secretbox.NewSecret(list))
		require.ErrorContains(t, err, want, list)
		for _, key := range []string{one, two} {
			require.NotContains(t, err.Error(), key)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(one + ",dash:viewer:" + two)
	f.Add(":::,,")
	f.Fuzz(func(t *testing.T, list string) {
		keys, err := auth.Parse(secretbox.NewSecret(list))
		if err != nil {
			return
		}
		if _, ok := keys.Lookup(""); ok {
			t.Fatal("an empty token is a key")
		}
	})
}

package secretbox_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/secretbox"
)

func reveal(list []secretbox.Secret) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, s.Reveal())
	}
	return out
}

func TestASecretMayBeAListWhoseFirstItemIsUsed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"only":                {"only"},
		" only\n":             {" only\n"}, // as before there were lists
		"new1,old1":           {"new1", "old1"},
		" new1 , old1 ,x y\n": {"new1", "old1", "x y"},
		"new1,new1, old1":     {"new1", "old1"},
	} {
		s := secretbox.NewSecret(text)
		list, err := s.List(3)
		require.NoError(t, err, text)
		require.Equal(t, want, reveal(list))
		require.Equal(t, want[0], s.First().Reveal())
		for _, item := range want {
			require.True(t, secretbox.NewSecret(item).In(list))
		}
		require.False(t, secretbox.NewSecret("other").In(list))
		require.False(t, s.In(list) && len(want) > 1, "the list itself is no item of it")
	}
	require.True(t, secretbox.Secret{}.First().IsZero())
	require.False(t, secretbox.Secret{}.In(nil))
}

func TestAnItemThatCannotBeIsToldByItsPlaceAndNotShown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                          "it has 0 bytes: want at least 16",
		"hunter2":                   "it has 7 bytes: want at least 16",
		"0123456789abcdef,hunter2":  "item 2 of 2 has 7 bytes",
		"0123456789abcdef, ,hunter": "item 2 of 3 is empty",
		"0123456789abcdef,":         "item 2 of 2 is empty",
		",0123456789abcdef":         "item 1 of 2 is empty",
		"0123456789abcdef,\n":       "item 2 of 2 is empty",
	} {
		_, err := secretbox.NewSecret(text).List(16)
		require.ErrorContains(t, err, want, text)
		require.NotContains(t, err.Error(), "hunter")
	}
}

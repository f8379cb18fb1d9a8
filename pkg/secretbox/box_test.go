package secretbox_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/pkg/secretbox"
)

var place = secretbox.Place{Table: "issuers", Row: "iss-1", Column: "credentials"}

func box(t testing.TB, keys ...secretbox.Key) *secretbox.Box {
	t.Helper()
	b, err := secretbox.NewBox(keys...)
	require.NoError(t, err)
	return b
}

func TestWhatIsSealedOpensInItsPlace(t *testing.T) {
	t.Parallel()
	b := box(t, secretbox.GenerateKey())
	rapid.Check(t, func(r *rapid.T) {
		plain := rapid.SliceOf(rapid.Byte()).Draw(r, "plain")
		at := secretbox.Place{Table: rapid.String().Draw(r, "table"), Row: rapid.String().Draw(r, "row"), Column: rapid.String().Draw(r, "column")}
		got, err := b.Open(b.Seal(plain, at), at)
		require.NoError(r, err)
		require.True(r, bytes.Equal(plain, got))
	})
}

func TestTheSamePlaintextIsNeverSealedAlike(t *testing.T) {
	t.Parallel()
	b := box(t, secretbox.GenerateKey())
	plain := []byte("token")
	one, two := b.Seal(plain, place), b.Seal(plain, place)
	require.NotEqual(t, one, two)
	require.NotContains(t, string(one), "token")
}

func TestDataInAnotherPlaceDoesNotOpen(t *testing.T) {
	t.Parallel()
	b := box(t, secretbox.GenerateKey())
	sealed := b.Seal([]byte("token"), place)
	for _, other := range []secretbox.Place{
		{Table: "agents", Row: "iss-1", Column: "credentials"},
		{Table: "issuers", Row: "iss-2", Column: "credentials"},
		{Table: "issuers", Row: "iss-1", Column: "key"},
		{Table: "issuersiss-1", Row: "", Column: "credentials"},
		{Table: "issuers", Row: "iss-1credentials", Column: ""},
		{},
	} {
		_, err := b.Open(sealed, other)
		require.ErrorIs(t, err, secretbox.ErrTampered, "%+v", other)
	}
}

func TestAlteredDataDoesNotOpenAndNoErrorShowsIt(t *testing.T) {
	t.Parallel()
	b := box(t, secretbox.GenerateKey())
	sealed := b.Seal([]byte("hunter2"), place)
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 0x40
		_, err := b.Open(altered, place)
		require.Error(t, err, "byte %d", i)
		require.NotContains(t, err.Error(), "hunter2")
	}
	for n := range sealed {
		_, err := b.Open(sealed[:n], place)
		require.Error(t, err, "first %d bytes", n)
	}
	_, err := b.Open(append(bytes.Clone(sealed), 0), place)
	require.ErrorIs(t, err, secretbox.ErrTampered)
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	before, after := secretbox.GenerateKey(), secretbox.GenerateKey()
	sealed := box(t, before).Seal([]byte("token"), place)

	both := box(t, after, before)
	got, err := both.Open(sealed, place)
	require.NoError(t, err)
	require.Equal(t, "token", string(got))
	require.True(t, both.Stale(sealed))

	fresh := both.Seal(got, place)
	require.False(t, both.Stale(fresh))
	_, err = box(t, after).Open(fresh, place)
	require.NoError(t, err)
	_, err = box(t, after).Open(sealed, place)
	require.ErrorIs(t, err, secretbox.ErrUnknownKey)
}

func TestABoxNeedsARightKey(t *testing.T) {
	t.Parallel()
	_, err := secretbox.NewBox()
	require.Error(t, err)
	_, err = secretbox.NewKey(make([]byte, 16))
	require.ErrorContains(t, err, "32 bytes")
}

func TestAKeyCannotBePrinted(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte("S"), 32)
	k, err := secretbox.NewKey(raw)
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		out := fmt.Sprintf(verb, k)
		require.NotContains(t, out, "SSSS", verb)
		require.NotContains(t, out, "53535353", verb)
	}
}

func TestTheKeyFileIsMadeOnceAndFoundAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "encryption-key")
	first, err := secretbox.LoadOrCreateKeys(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	second, err := secretbox.LoadOrCreateKeys(path)
	require.NoError(t, err)
	require.Equal(t, first, second)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left")
}

func TestProcessesThatStartAtOnceUseOneKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "encryption-key")
	var wg sync.WaitGroup
	ids := make([]string, 16)
	problems := make([]error, len(ids))
	for i := range ids {
		wg.Go(func() {
			keys, err := secretbox.LoadOrCreateKeys(path)
			if problems[i] = err; err == nil {
				ids[i] = keys[0].String()
			}
		})
	}
	wg.Wait()
	for i := range ids {
		require.NoError(t, problems[i])
		require.Equal(t, ids[0], ids[i])
	}
}

func TestAKeyFileThatIsNotSafeOrNotRightIsRefused(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("S"), 32))
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"others may read it": {key, 0o644, "chmod 600"},
		"empty":              {"", 0o600, "there are none"},
		"only comments":      {"# nothing\n", 0o600, "there are none"},
		"not base64":         {key + "\nhunter2!\n", 0o600, "line 2: not base64"},
		"short":              {"aHVudGVyMg==", 0o600, "line 1"},
		"huge":               {strings.Repeat("#\n", 40<<10), 0o600, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "k")
			require.NoError(t, os.WriteFile(path, []byte(tc.content), 0o600))
			require.NoError(t, os.Chmod(path, tc.mode))
			_, err := secretbox.LoadOrCreateKeys(path)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
	_, err := secretbox.LoadKeys(t.TempDir())
	require.ErrorContains(t, err, "regular")
}

func TestAFileWithSeveralKeysEncryptsWithTheFirst(t *testing.T) {
	t.Parallel()
	line := func(c string) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(c), 32)) }
	keys, err := secretbox.ParseKeys(secretbox.NewSecret("# new\n" + line("n") + "\n\n" + line("o") + "\r\n"))
	require.NoError(t, err)
	require.Len(t, keys, 2)
	sealed := box(t, keys...).Seal([]byte("x"), place)
	_, err = box(t, keys[0]).Open(sealed, place)
	require.NoError(t, err)
	require.Equal(t, keys[0].String(), secretbox.KeyOf(sealed))
	require.Equal(t, "no key", secretbox.KeyOf(sealed[:20]))
	require.Equal(t, keys[0].String(), box(t, keys...).First())
	require.Equal(t, 2, box(t, keys...).Keys())

	commas, err := secretbox.ParseKeys(secretbox.NewSecret(line("n") + ", " + line("o")))
	require.NoError(t, err)
	require.Equal(t, keys, commas)
	_, err = secretbox.ParseKeys(secretbox.NewSecret("# a, comment\n" + line("n") + ",,"))
	require.ErrorContains(t, err, "line 2")
}

func FuzzOpen(f *testing.F) {
	k, err := secretbox.NewKey(bytes.Repeat([]byte("S"), 32))
	require.NoError(f, err)
	b := box(f, k)
	sealed := b.Seal([]byte("token"), place)
	f.Add(sealed)
	f.Add([]byte{})
	f.Add(sealed[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, err := b.Open(data, place)
		b.Stale(data)
		if err == nil && string(plain) != "token" {
			t.Fatal("forged")
		}
	})
}

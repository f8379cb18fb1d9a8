package field_test

import (
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

// apply parses a command line and sets the fields of m.
func apply(t *testing.T, m proto.Message, fields []field.Field, args ...string) ([]string, error) {
	t.Helper()
	var set *field.Set
	var paths []string
	c := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		paths = set.Apply(m)
		return nil
	}}
	set = field.Register(c, m.ProtoReflect().Descriptor(), clock, fields...)
	c.SetArgs(args)
	return paths, c.ExecuteContext(t.Context())
}

func TestOnlyFlagsThatWereGivenChangeAnything(t *testing.T) {
	t.Parallel()
	m := &inventoryv1.Certificate{Owner: "me", Team: "ours"}
	paths, err := apply(t, m, []field.Field{{Path: "owner"}, {Path: "team"}}, "--owner=")
	require.NoError(t, err)
	require.Equal(t, []string{"owner"}, paths)
	require.True(t, proto.Equal(&inventoryv1.Certificate{Team: "ours"}, m))
}

func TestAnEmptyTextEmptiesAListAMapAndADuration(t *testing.T) {
	t.Parallel()
	m := &inventoryv1.Certificate{DnsNames: []string{"a"}, Labels: map[string]string{"a": "b"}}
	paths, err := apply(t, m, []field.Field{{Path: "dns_names", Flag: "dns"}, {Path: "labels", Flag: "label"}}, "--dns", "", "--label", "")
	require.NoError(t, err)
	require.Equal(t, []string{"dns_names", "labels"}, paths)
	require.True(t, proto.Equal(&inventoryv1.Certificate{}, m), "got %v", m)

	p := &issuancev1.Profile{}
	_, err = apply(t, p, []field.Field{{Path: "max_validity"}}, "--max-validity", "90d", "--max-validity", "")
	require.NoError(t, err)
	require.Nil(t, p.GetMaxValidity())
}

func TestAPathThatDoesNotExistIsAMistakeOfTheProgram(t *testing.T) {
	t.Parallel()
	require.PanicsWithValue(t, "certctl.inventory.v1.Certificate has no field nope", func() {
		field.Register(&cobra.Command{}, (&inventoryv1.Certificate{}).ProtoReflect().Descriptor(), clock, field.Field{Path: "nope"})
	})
}

func TestDurationsTakeDays(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "0s": 0} {
		got, err := field.Duration(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "90", "d", "-1d", "-1h", "1d-1h", "1w", "99999999d", "1.5d"} {
		_, err := field.Duration(text)
		require.Error(t, err, text)
	}
}

func TestTimesAreAbsoluteOrCountedFromNow(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"+30d": now.AddDate(0, 0, 30), "-90m": now.Add(-90 * time.Minute), "2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T10:00:00+02:00": time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC),
	} {
		got, err := field.Time(text, now)
		require.NoError(t, err, text)
		require.True(t, want.Equal(got), text)
	}
	for _, text := range []string{"", "30d", "tomorrow", "+", "-x", "2026-13-01"} {
		_, err := field.Time(text, now)
		require.Error(t, err, text)
	}
}

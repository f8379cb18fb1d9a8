package show_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

func TestTimesAreToldInOneUnit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0: "now", 999 * time.Millisecond: "now", time.Second: "in 1s", 119 * time.Second: "in 119s", 2 * time.Minute: "in 2m", -3 * time.Hour: "3h ago",
		47 * time.Hour: "in 47h", 12*day + time.Hour: "in 12d", -729 * day: "729d ago", 800 * day: "in 2y",
	} {
		require.Equal(t, want, show.Relative(now.Add(d), now))
	}
}

func TestDurationsHaveDaysAndNoFractionsOfSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", time.Hour: "1h0m0s", 2160 * time.Hour: "90d", 36 * time.Hour: "1d12h0m0s", 48*time.Hour + time.Second + time.Millisecond: "2d1s",
	} {
		require.Equal(t, want, show.Duration(d))
	}
}

func TestTextForTerminalsHasNoControlCharacters(t *testing.T) {
	t.Parallel()
	require.Equal(t, `plain ü 漢`, show.Clean("plain ü 漢"))
	require.Equal(t, `a b\u001b[31mc\u202ed\u0007`, show.Clean("a\nb\x1b[31mc\u202ed\a"))
}

func TestTextOfSeveralLinesFollowsItsName(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := show.Printer{Out: &b, Format: show.Table}
	require.NoError(t, p.Describe(&inventoryv1.CertificateVersion{Version: 1, CertificatePem: "-----BEGIN\x1b\nabc\n"}))
	require.Equal(t, "version:  1\ncertificate_pem:\n-----BEGIN\\u001b\nabc\n", b.String())
}

func TestTheSameMessageGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	m := &inventoryv1.Certificate{Id: "a<b>", Labels: map[string]string{"x": "1", "a": "2", "k": "3"}}
	first, err := show.Marshal(m)
	require.NoError(t, err)
	require.Contains(t, string(first), `"id":"a<b>"`)
	require.Contains(t, string(first), `"labels":{"a":"2","k":"3","x":"1"}`)
	for range 20 {
		again, err := show.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, string(first), string(again))
	}
}

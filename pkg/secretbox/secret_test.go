package secretbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/certctl/certctl/pkg/secretbox"
)

func TestASecretCannotBePrinted(t *testing.T) {
	t.Parallel()
	type holder struct {
		Open   secretbox.Secret
		hidden secretbox.Secret
	}
	s := secretbox.NewSecret("hunter2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{s, &s, holder{s, s}, &holder{s, s}, []secretbox.Secret{s}, map[string]holder{"k": {s, s}}} {
			out := fmt.Sprintf(verb, v)
			require.NotContains(t, out, "hunter2", verb)
			require.NotContains(t, out, "68756e74657232", verb)
		}
	}
	encoded, err := json.Marshal(holder{s, s})
	require.NoError(t, err)
	require.JSONEq(t, `{"Open":"***"}`, string(encoded))

	var buf bytes.Buffer
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zap.DebugLevel))
	log.Info("m", zap.Any("a", s), zap.Stringer("b", s), zap.Reflect("c", holder{s, s}))
	require.Contains(t, buf.String(), "***")
	require.NotContains(t, buf.String(), "hunter2")
}

func TestASecretIsComparedByContent(t *testing.T) {
	t.Parallel()
	require.True(t, secretbox.NewSecret("a").Equal(secretbox.NewSecret("a")))
	require.False(t, secretbox.NewSecret("a").Equal(secretbox.NewSecret("b")))
	require.True(t, secretbox.Secret{}.Equal(secretbox.NewSecret("")))
	require.True(t, secretbox.Secret{}.IsZero())
	require.Empty(t, secretbox.Secret{}.String())
	var s secretbox.Secret
	require.NoError(t, s.UnmarshalText([]byte(" as it is\n")))
	require.Equal(t, " as it is\n", s.Reveal())
}

package logx_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/secretbox"
)

func newLogger(t *testing.T, cfg logx.Config) (*zap.Logger, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	l, err := logx.New(cfg, zapcore.AddSync(&b))
	require.NoError(t, err)
	return l, &b
}

func TestALineIsJSONWithTheAgreedKeys(t *testing.T) {
	t.Parallel()
	l, b := newLogger(t, logx.Config{Service: "inventory", Version: "1.2.3"})
	l.Warn("call failed", logx.RequestID("req-1"), logx.Duration(1500*time.Millisecond), logx.Error(errors.New("boom")))

	var line map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &line))
	at, err := time.Parse(time.RFC3339, line["time"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), at, time.Minute)
	delete(line, "time")
	require.Equal(t, map[string]any{
		"level": "warn", "message": "call failed", "service": "inventory", "version": "1.2.3",
		"request_id": "req-1", "duration": 1.5, "error": "boom",
	}, line)
}

func TestALevelBelowTheConfiguredOneIsNotWritten(t *testing.T) {
	t.Parallel()
	l, b := newLogger(t, logx.Config{Level: "warn", Format: logx.Console})
	l.Info("quiet")
	require.Zero(t, b.Len())
	l.Warn("loud")
	require.Contains(t, b.String(), "loud")
}

func TestUnknownSettingsAreRefusedByName(t *testing.T) {
	t.Parallel()
	_, err := logx.New(logx.Config{Level: "fatal"}, zapcore.AddSync(&bytes.Buffer{}))
	require.ErrorContains(t, err, `log level "fatal"`)
	_, err = logx.New(logx.Config{Format: "xml"}, zapcore.AddSync(&bytes.Buffer{}))
	require.ErrorContains(t, err, `log format "xml"`)
}

func TestNoWayOfLoggingShowsASecret(t *testing.T) {
	t.Parallel()
	type settings struct {
		Name   string
		Secret secretbox.Secret
		Nested map[string]secretbox.Secret
		List   []*secretbox.Secret
	}
	s := secretbox.NewSecret("hunter2")
	held := settings{Name: "n", Secret: s, Nested: map[string]secretbox.Secret{"k": s}, List: []*secretbox.Secret{&s}}
	for _, format := range []string{logx.JSON, logx.Console} {
		l, b := newLogger(t, logx.Config{Format: format})
		l.Info("any", zap.Any("secret", s), zap.Any("pointer", &s), zap.Any("struct", held), zap.Any("slice", []secretbox.Secret{s}))
		l.Info("reflect", zap.Reflect("secret", s), zap.Reflect("struct", &held), zap.Stringer("stringer", s))
		l.Info("error", logx.Error(fmt.Errorf("login with %v %s %q %x %#v %+v", s, s, s, s, s, held)))
		l.Sugar().Infow("sugar", "secret", s, "struct", held)
		l.Sugar().Infof("%v %+v", s, held)
		require.NotContains(t, b.String(), "hunter2")
		require.NotContains(t, b.String(), "68756e74657232")
		require.Contains(t, b.String(), "***")
	}
}

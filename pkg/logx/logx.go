// Package logx builds the logger and names its fields. Messages are constant sentences and all data is in fields,
// whose keys come from here, so that one spelling finds everything.
package logx

import (
	"fmt"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The formats of log lines.
const (
	JSON    = "json"
	Console = "console"
)

// Config sets up the logger.
type Config struct {
	// Level is the least that is written: debug, info, warn or error; "" means info.
	Level string
	// Format is JSON or Console; "" means JSON.
	Format string
	// Service and Version stand in every line unless empty.
	Service string
	Version string
}

// New makes a logger that writes to out, which must be safe for concurrent use (zapcore.Lock makes it so). No line is
// ever dropped by sampling.
func New(cfg Config, out zapcore.WriteSyncer) (*zap.Logger, error) {
	level, err := ParseLevel(cfg.Level)
	if err != nil {
		return nil, err
	}
	enc, err := encoder(cfg.Format)
	if err != nil {
		return nil, err
	}
	return zap.New(zapcore.NewCore(enc, out, level), zap.ErrorOutput(out), zap.Fields(cfg.fields()...)), nil
}

// ParseLevel reads debug, info, warn or error; "" is info. Levels that end the process do not exist here.
func ParseLevel(s string) (zapcore.Level, error) {
	switch s {
	case "debug":
		return zapcore.DebugLevel, nil
	case "", "info":
		return zapcore.InfoLevel, nil
	case "warn":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	default:
		return 0, fmt.Errorf("log level %q: want debug, info, warn or error", s)
	}
}

func (c Config) fields() []zap.Field {
	var f []zap.Field
	if c.Service != "" {
		f = append(f, Service(c.Service))
	}
	if c.Version != "" {
		f = append(f, zap.String(KeyVersion, c.Version))
	}
	return f
}

func encoder(format string) (zapcore.Encoder, error) {
	cfg := zapcore.EncoderConfig{
		TimeKey:        KeyTime,
		LevelKey:       KeyLevel,
		NameKey:        KeyLogger,
		MessageKey:     KeyMessage,
		EncodeTime:     encodeTime,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.SecondsDurationEncoder,
	}
	switch format {
	case "", JSON:
		return zapcore.NewJSONEncoder(cfg), nil
	case Console:
		return zapcore.NewConsoleEncoder(cfg), nil
	default:
		return nil, fmt.Errorf("log format %q: want %s or %s", format, JSON, Console)
	}
}

// encodeTime writes RFC 3339 in UTC with milliseconds, whatever the zone of the host.
func encodeTime(t time.Time, e zapcore.PrimitiveArrayEncoder) {
	e.AppendString(t.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

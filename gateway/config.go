package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/gateway/internal/limit"
	"github.com/certctl/certctl/pkg/secretbox"
)

// The values of Config.AuthType.
const (
	AuthAPIKey = auth.TypeAPIKey
	AuthNone   = auth.TypeNone
)

// The defaults of Config.
const (
	DefaultListenAddr     = "127.0.0.1:8443"
	DefaultMaxBody        = 1 << 20
	DefaultRequestTimeout = time.Minute
	DefaultDrainTimeout   = 10 * time.Second
)

// Rate is a token bucket: so many a second, and so many at once. PerSecond 0 is the default, below 0 no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Config says how the gateway works. Zero values are the defaults.
type Config struct {
	// ListenAddr is the address of the one listener.
	ListenAddr string
	// TLSCertFile and TLSKeyFile are PEM, the certificate with its chain. They are not needed when Deps give certificates.
	TLSCertFile, TLSKeyFile string
	// AuthType is AuthAPIKey or AuthNone.
	AuthType string
	// AuthSecret is the list of API keys: entries "key" (an admin's) or "name:role:key", with commas between.
	AuthSecret secretbox.Secret
	// AuthNoneAcknowledged allows AuthNone on an address that others reach.
	AuthNoneAcknowledged bool
	// CORSOrigins are the origins whose pages may use the API, such as "https://ui.example.com"; "*" is all.
	CORSOrigins []string
	// MaxBody bounds a request's body, and a message of a gRPC client, in bytes.
	MaxBody int64
	// RequestTimeout bounds a request. Streams of agents have no bound.
	RequestTimeout time.Duration
	// DrainTimeout bounds the stop.
	DrainTimeout time.Duration
	// AddressRate bounds the requests of a client address before anything is known of the caller, those of agents apart from
	// the others and with ten times the burst, since a fleet behind one address returns at once; FailureRate its
	// requests without a valid key; CallerRate the requests of a user.
	AddressRate, FailureRate, CallerRate Rate
}

func (c *Config) setDefaults() {
	c.ListenAddr = cmp.Or(c.ListenAddr, DefaultListenAddr)
	c.AuthType = cmp.Or(c.AuthType, AuthAPIKey)
	c.MaxBody = cmp.Or(c.MaxBody, DefaultMaxBody)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, DefaultRequestTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, DefaultDrainTimeout)
	c.AddressRate = c.AddressRate.or(Rate{PerSecond: 500, Burst: 2000})
	c.FailureRate = c.FailureRate.or(Rate{PerSecond: 1, Burst: 20})
	c.CallerRate = c.CallerRate.or(Rate{PerSecond: 100, Burst: 300})
}

func (r Rate) or(def Rate) Rate {
	if r.PerSecond == 0 {
		return def
	}
	return Rate{PerSecond: r.PerSecond, Burst: cmp.Or(r.Burst, max(1, int(r.PerSecond)))}
}

func (r Rate) limit() limit.Rate { return limit.Rate{PerSecond: r.PerSecond, Burst: r.Burst} }

// Validate tells what settings contradict each other.
func (c *Config) Validate() error {
	if _, err := auth.NewGate(auth.Config{Type: c.AuthType, Secret: c.AuthSecret}); err != nil {
		return fmt.Errorf("CERTCTL_AUTH_TYPE, CERTCTL_AUTH_SECRET: %w", err)
	}
	if c.AuthType != AuthNone {
		return nil
	}
	if slices.Contains(c.CORSOrigins, "*") {
		return errors.New("CERTCTL_AUTH_TYPE=none and CERTCTL_CORS_ORIGINS=* would let every web page use the API")
	}
	if isLoopback(cmp.Or(c.ListenAddr, DefaultListenAddr)) || c.AuthNoneAcknowledged {
		return nil
	}
	return fmt.Errorf("CERTCTL_AUTH_TYPE=none makes everybody who reaches %s an admin: listen on a loopback address such as 127.0.0.1:8443, "+
		"or set CERTCTL_AUTH_NONE_ACKNOWLEDGED=true when only an authenticating proxy reaches it", c.ListenAddr)
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

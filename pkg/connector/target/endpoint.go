package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/errs"
)

// Endpoint says where to look at what is served. Address is host:port. ServerName is sent as SNI; empty, it is the first DNS
// name of the certificate. StartTLS is empty or one of smtp, imap, pop3, postgres.
type Endpoint struct {
	Address    string `json:"address"`
	ServerName string `json:"server_name"`
	StartTLS   string `json:"starttls"`
}

func (e Endpoint) check(required bool) error {
	var v errs.Violations
	switch {
	case e.Address == "" && required:
		v.Add("endpoint.address", "is required: without it nothing shows what the server serves")
	case e.Address == "" && (e.ServerName != "" || e.StartTLS != ""):
		v.Add("endpoint.address", "is required with server_name or starttls")
	case e.Address != "" && !hostPort(e.Address):
		v.Add("endpoint.address", "must be host:port, not %q", e.Address)
	}
	if len(e.ServerName) > 253 || strings.ContainsAny(e.ServerName, "*: \x00/") {
		v.Add("endpoint.server_name", "must be a DNS name without a wildcard")
	}
	_, ok := upgrades()[e.StartTLS]
	if !ok && e.StartTLS != "" {
		v.Add("endpoint.starttls", "must be empty, smtp, imap, pop3 or postgres")
	}
	return v.Err()
}

func hostPort(address string) bool {
	host, port, err := net.SplitHostPort(address)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && bad == nil && n > 0 && host != "" && len(host) <= 253
}

// named fills in the server name.
func (e Endpoint) named(names []string) Endpoint {
	if e.ServerName != "" {
		return e
	}
	for _, n := range names {
		if net.ParseIP(n) == nil && !strings.ContainsAny(n, "@:/") {
			e.ServerName = strings.Replace(n, "*.", "wildcard.", 1)
			break
		}
	}
	return e
}

// Verification says by what it is known what is served.
type Verification string

// By connecting to the endpoint, or, for a target without one, only by reading the files back.
const (
	ByEndpoint Verification = "endpoint"
	ByFiles    Verification = "files"
)

// Served is what a client gets. The fingerprints are SHA-256 in lower-case hex; Chain has those of all certificates in the
// order sent, the leaf first.
type Served struct {
	FingerprintSHA256 string       `json:"fingerprint_sha256"`
	Chain             []string     `json:"chain"`
	Address           string       `json:"address"`
	ServerName        string       `json:"server_name"`
	NotAfter          time.Time    `json:"not_after"`
	VerifiedBy        Verification `json:"verified_by"`
}

// same tells whether the chain is the wanted one, in order.
func (s Served) same(want []string) bool { return len(want) > 0 && slices.Equal(s.Chain, want) }

func served(list []*x509.Certificate, by Verification) Served {
	prints := fingerprints(list)
	return Served{FingerprintSHA256: prints[0], Chain: prints, NotAfter: list[0].NotAfter, VerifiedBy: by}
}

// probe connects once. A server that has certificates of several key types is asked for the type that is wanted, if any: TLS
// 1.2 lets a client choose by cipher suite.
func probe(ctx context.Context, e Endpoint, want x509.PublicKeyAlgorithm, timeout time.Duration) (Served, error) {
	config := &tls.Config{
		ServerName:         e.ServerName,
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // the chain is compared byte for byte with the wanted one, which is stricter
	}
	got, err := dial(ctx, e, config, timeout)
	if err != nil || want == x509.UnknownPublicKeyAlgorithm || got[0].PublicKeyAlgorithm == want {
		return e.served(got), err
	}
	config.MaxVersion = tls.VersionTLS12
	config.CipherSuites = suites(want)
	other, err := dial(ctx, e, config, timeout)
	if err != nil {
		return e.served(got), nil //nolint:nilerr // the server has no certificate of that type: what it serves is the answer
	}
	return e.served(other), nil
}

func (e Endpoint) served(list []*x509.Certificate) Served {
	if len(list) == 0 {
		return Served{}
	}
	s := served(list, ByEndpoint)
	s.Address, s.ServerName = e.Address, e.ServerName
	return s
}

// suites gives the TLS 1.2 suites that sign with a type of key.
func suites(key x509.PublicKeyAlgorithm) []uint16 {
	if key == x509.RSA {
		return []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}
	}
	return []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}
}

// dial makes a handshake and gives the certificates in the order in which the server sent them.
func dial(ctx context.Context, e Endpoint, config *tls.Config, timeout time.Duration) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", e.Address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	end, _ := ctx.Deadline()
	err = conn.SetDeadline(end)
	if err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if e.StartTLS != "" {
		err = startTLS(conn, e.StartTLS)
	}
	if err != nil {
		return nil, fmt.Errorf("start TLS over %s: %w", e.StartTLS, err)
	}
	client := tls.Client(conn, config)
	err = client.HandshakeContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	list := client.ConnectionState().PeerCertificates
	if len(list) == 0 {
		return nil, errs.New(errs.Unavailable, "NOT_SERVED", "the endpoint sent no certificate")
	}
	return list, nil
}

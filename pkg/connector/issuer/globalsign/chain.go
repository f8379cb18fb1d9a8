package globalsign

import (
	"bytes"
	"context"
	"crypto/x509"
	"net/http"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// maxChain is the most certificates of a trust chain.
const maxChain = 8

// chain is the issuing CA first, the root last.
type chain []*x509.Certificate

// issued tells whether a certificate is one of the chain's first.
func (c chain) issued(leaf *x509.Certificate) bool {
	return len(c) > 0 && bytes.Equal(leaf.RawIssuer, c[0].RawSubject) && leaf.CheckSignatureFrom(c[0]) == nil
}

// Chain gives the issuing certificate, those above it, and the root.
func (i *Issuer) Chain(ctx context.Context) ([]*x509.Certificate, error) { return i.chain.Get(ctx) }

// chainOf gives what goes with a certificate: the chain without its root. A certificate that the known chain did not issue
// has the chain read anew, as GlobalSign may have gone on to another issuing CA. What does not fit even then is handed on,
// for certcheck to say so.
func (i *Issuer) chainOf(ctx context.Context, certificate []byte) ([]byte, error) {
	known, err := i.chain.Get(ctx)
	if err != nil {
		return nil, err
	}
	if leaf, ok := single(certificate); ok && !known.issued(leaf) {
		i.chain.DropIf(func(c chain) bool { return c.same(known) })
		if known, err = i.chain.Get(ctx); err != nil {
			return nil, err
		}
	}
	var above []*x509.Certificate
	for _, c := range known {
		if !certcheck.SelfSigned(c) {
			above = append(above, c)
		}
	}
	return certcheck.EncodePEM(above...), nil
}

func (c chain) same(o chain) bool { return len(c) == len(o) && (len(c) == 0 || c[0].Equal(o[0])) }

// single reads a PEM with one certificate.
func single(raw []byte) (*x509.Certificate, bool) {
	certs, err := certcheck.ParseBundle(raw)
	if err != nil || len(certs) != 1 {
		return nil, false
	}
	return certs[0], true
}

func (i *Issuer) readChain(ctx context.Context) (chain, error) {
	call := caclient.Call{Method: http.MethodGet, Path: []string{"trustchain"}}
	var answer []string
	if _, err := i.do(ctx, call, &answer); err != nil {
		return nil, err
	}
	c, err := parseChain(answer)
	if err != nil {
		return nil, i.client.Unusable(call, "the trust chain cannot be read: %w", err)
	}
	return c, nil
}

// parseChain reads the answer of GET /trustchain: an array of PEM certificates.
func parseChain(answer []string) (chain, error) {
	if len(answer) == 0 || len(answer) > maxChain {
		return nil, issuer.Permanent("CHAIN_INVALID", "it has %d entries", len(answer))
	}
	var out chain
	for _, each := range answer {
		certs, err := certcheck.ParseBundle([]byte(each))
		if err != nil {
			return nil, err
		}
		out = append(out, certs...)
	}
	return out, nil
}

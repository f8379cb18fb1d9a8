package entrustgateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// maxChain is the most certificates above the leaf that are taken from an answer.
const maxChain = certcheck.MaxCertificates - 1

// serialForm is how serial numbers are written: hex of at most 20 octets.
var serialForm = regexp.MustCompile(`^[0-9A-Fa-f]{1,40}$`)

// canonical gives a serial number in our form.
func canonical(serial string) (string, bool) {
	if !serialForm.MatchString(serial) {
		return "", false
	}
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok || issuer.CheckSerial(n) != nil {
		return "", false
	}
	return issuer.FormatSerial(n), true
}

// deliver makes the answer of a certificate in whatever form it came and of what stands above it. Where the gateway did not
// send the certificate's issuer, the CA's own chain is added. What cannot be read is asked for again, as it may be whole the next
// time: the certificate is there and paid for.
func (i *Issuer) deliver(ctx context.Context, ref issuer.Ref, body string, above []certificateData) (issuer.Submission, error) {
	out := issuer.Submission{State: issuer.Issued, Ref: ref}
	bundle, err := caclient.ParseBundle([]byte(body))
	if err != nil {
		return issuer.Submission{}, &issuer.RetryError{Message: "the gateway gives a certificate that cannot be read", Cause: err}
	}
	bundle = append(bundle, decodeAll(above)...)
	if !complete(bundle, bundle.LeafOf(ref[refKey])) {
		known, err := i.chain.Get(ctx)
		if err != nil {
			return issuer.Submission{}, err
		}
		bundle = append(bundle, known...)
	}
	key := ref[refKey]
	if leaf := bundle.LeafOf(key); leaf != nil {
		out.Ref = withCertificate(ref, serialOf(ref, leaf))
	}
	out.CertificatePEM, out.ChainPEM = bundle.Split(key)
	return out, nil
}

// complete tells whether a bundle holds the issuer of a certificate; an unknown one counts as without.
func complete(bundle caclient.Bundle, leaf *x509.Certificate) bool {
	return leaf != nil && slices.ContainsFunc(bundle, func(c *x509.Certificate) bool {
		return c.IsCA && bytes.Equal(c.RawSubject, leaf.RawIssuer) && leaf.CheckSignatureFrom(c) == nil
	})
}

// serialOf prefers the form of the gateway where it is the same number.
func serialOf(ref issuer.Ref, leaf *x509.Certificate) string {
	ours := issuer.FormatSerial(leaf.SerialNumber)
	if ref[refSerial] == ours {
		return ref[refCertificate]
	}
	return ours
}

// issued makes the answer of a certificate that was asked for by its number.
func (i *Issuer) issued(ctx context.Context, ref issuer.Ref, answer certificateResponse) (issuer.Submission, error) {
	if revoked(answer.Certificate) {
		return issuer.Submission{State: issuer.Rejected, Ref: ref, Detail: "the certificate has been revoked at the CA"}, nil
	}
	return i.deliver(ctx, ref, answer.Certificate.CertificateData, answer.Chain)
}

func revoked(c certificate) bool { return strings.EqualFold(c.Status, "revoked") }

// decodeAll reads base64 DER certificates; those that cannot be read are left out.
func decodeAll(all []certificateData) []*x509.Certificate {
	var out []*x509.Certificate
	for _, each := range all[:min(len(all), maxChain)] {
		if c, ok := decodeOne(each.CertificateData); ok {
			out = append(out, c)
		}
	}
	return out
}

func decodeOne(data string) (*x509.Certificate, bool) {
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(data), ""))
	if err != nil {
		return nil, false
	}
	c, err := x509.ParseCertificate(der)
	return c, err == nil
}

// chain is the issuing CA first, the root last if it is known.
type chain []*x509.Certificate

// Chain gives the CA's certificate and those above it.
func (i *Issuer) Chain(ctx context.Context) ([]*x509.Certificate, error) { return i.chain.Get(ctx) }

func (i *Issuer) readChain(ctx context.Context) (chain, error) {
	call := i.call(http.MethodGet)
	// The gateway leaves both out unless they are asked for.
	call.Query = url.Values{"$fields": {"ca.certificate,ca.chain"}}
	var answer caResponse
	if _, err := i.client.JSON(ctx, call, &answer); err != nil {
		return nil, err
	}
	ca, ok := decodeOne(answer.CA.Certificate.CertificateData)
	if !ok {
		return nil, i.client.Unusable(call, "the answer for the CA holds no certificate of it")
	}
	return above(ca, decodeAll(answer.CA.Chain)), nil
}

// above orders certificates from one up to its root: the gateway does not say in which order it has them.
func above(first *x509.Certificate, others []*x509.Certificate) chain {
	out := chain{first}
	for len(out) <= maxChain {
		last := out[len(out)-1]
		next := slices.IndexFunc(others, func(c *x509.Certificate) bool {
			return !slices.ContainsFunc(out, c.Equal) && bytes.Equal(c.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(c) == nil
		})
		if next < 0 || certcheck.SelfSigned(last) {
			break
		}
		out = append(out, others[next])
	}
	return out
}

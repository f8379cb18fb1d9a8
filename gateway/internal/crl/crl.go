// Package crl serves certificate revocation lists piece by piece: one of a million entries has 50 MB, which neither issuance nor the
// gateway is to have in memory for each client that asks.
package crl

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/certctl/certctl/gateway/internal/etag"
	"github.com/certctl/certctl/pkg/errs"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// Handler serves the CRLs of issuance.
type Handler struct {
	Client issuancev1.CrlServiceClient
	// Timeout bounds the reading of a piece, and the sending of it.
	Timeout time.Duration
}

// Serve answers the newest CRL of an issuer, DER, with a tag and a Cache-Control of the caller's. An error is for the caller to write:
// nothing is written yet. One that comes later ends in a panic, which cuts the connection: the client sees that the CRL is not whole.
func (h Handler) Serve(w http.ResponseWriter, r *http.Request, issuerID, caching string) error {
	piece, err := h.first(r.Context(), issuerID)
	if err != nil {
		return err
	}
	number, size := piece.GetNumber(), piece.GetSize()
	head := w.Header()
	head.Set("Cache-Control", caching)
	if number > 0 {
		// A database that was restored may give a number again, for another CRL.
		tag := fmt.Sprintf(`"%d-%x"`, number, piece.GetNextUpdate().GetSeconds())
		head.Set("ETag", tag)
		if etag.Match(r.Header.Values("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	head.Set("Content-Type", "application/pkix-crl") // RFC 2585, section 4.2
	head.Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	for sent := int64(0); ; {
		h.extend(w)
		if _, err := w.Write(piece.GetData()); err != nil {
			return nil //nolint:nilerr // the client left; nobody is there to be told
		}
		if sent += int64(len(piece.GetData())); sent >= size {
			return nil
		}
		piece, err = h.read(r.Context(), issuerID, number, sent)
		if err == nil && len(piece.GetData()) == 0 {
			err = fmt.Errorf("it ends after %d of %d bytes", sent, size)
		}
		if err != nil {
			panic(fmt.Errorf("CRL %d of issuer %s: %w", number, issuerID, err))
		}
	}
}

// extend lets a client that takes piece after piece go on. The deadline for reading ends the request, too, as if the client had left.
func (h Handler) extend(w http.ResponseWriter) {
	end, rc := time.Now().Add(2*h.Timeout), http.NewResponseController(w)
	_ = rc.SetReadDeadline(end)  // not there in tests that use no connection
	_ = rc.SetWriteDeadline(end) // likewise
}

// first reads the first piece, or all of an issuance that is of the version before, which knows of no pieces.
func (h Handler) first(ctx context.Context, issuerID string) (*issuancev1.ReadCrlResponse, error) {
	piece, err := h.read(ctx, issuerID, 0, 0)
	if !errs.IsKind(err, errs.Unimplemented) {
		return piece, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	body, err := h.Client.GetCrl(ctx, &issuancev1.GetCrlRequest{IssuerId: issuerID})
	return &issuancev1.ReadCrlResponse{Size: int64(len(body.GetData())), Data: body.GetData()}, err //nolint:wrapcheck // the client gets the status as it is
}

func (h Handler) read(ctx context.Context, issuerID string, number, offset int64) (*issuancev1.ReadCrlResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	return h.Client.ReadCrl(ctx, &issuancev1.ReadCrlRequest{IssuerId: issuerID, Number: number, Offset: offset}) //nolint:wrapcheck // the client gets the status as it is
}

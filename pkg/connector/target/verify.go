package target

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

const (
	// enough is how many connections in a row must get the new chain: after a reload old and new workers accept side by
	// side for a moment.
	enough = 3
	// Pauses between connections: soon again after a success, less so after a failure.
	pauseAfterSuccess = 10 * time.Millisecond
	pauseAfterFailure = 100 * time.Millisecond
)

// verify proves that the new certificate is served.
func (d *deployment) verify(ctx context.Context) error {
	if d.intent.Endpoint.Address == "" {
		return d.verifyFiles()
	}
	var err error
	d.result.Served, err = d.waitServed(ctx, d.intent.Want)
	return err
}

// verifyFiles reads the files back: all that can be known without an endpoint.
func (d *deployment) verifyFiles() error {
	for _, f := range d.intent.Files {
		now, err := f.read(f.Name)
		if err != nil {
			return fmt.Errorf("read back %s: %w", f.place(), err)
		}
		if now == nil || now.SHA256 != f.New.SHA256 || !f.New.Look.match(now.Look) {
			return errs.New(errs.Unavailable, "NOT_SERVED", "%s is not as it was written", f.place())
		}
	}
	d.result.Served = Served{FingerprintSHA256: d.intent.Want[0], Chain: d.intent.Want, NotAfter: d.notAfter, VerifiedBy: ByFiles}
	return nil
}

func (d *deployment) probe(ctx context.Context) (Served, error) {
	return probe(ctx, d.intent.Endpoint, d.intent.KeyType, d.engine.config.Timeouts.Probe)
}

// waitServed connects until the wanted chain was served several times in a row, or the time is up.
func (d *deployment) waitServed(ctx context.Context, want []string) (Served, error) {
	limit := d.engine.config.Timeouts.Verify
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last Served
	for streak := 0; ; {
		got, err := d.probe(within)
		seen := within.Err() == nil || err == nil
		if seen {
			last = got
		}
		pause := pauseAfterFailure
		if err == nil && got.same(want) {
			streak++
			pause = pauseAfterSuccess
		} else {
			streak = 0
		}
		if streak == enough {
			return got, nil
		}
		if !wait(within, pause) {
			if ctx.Err() != nil {
				return last, ctx.Err()
			}
			return last, d.notServed(want, last, err, limit)
		}
	}
}

// notServed says what is served instead.
func (d *deployment) notServed(want []string, last Served, err error, limit time.Duration) error {
	at := d.intent.Endpoint.Address
	if d.intent.Endpoint.ServerName != "" {
		at += " (" + d.intent.Endpoint.ServerName + ")"
	}
	what := "it serves none"
	switch {
	case len(last.Chain) == 0 && err != nil:
		what = err.Error()
	case len(last.Chain) == 0:
	case last.FingerprintSHA256 == want[0]:
		what = fmt.Sprintf("it serves the certificate with a chain of %d where %d were written, or in another order", len(last.Chain), len(want))
	default:
		what = "it goes on serving " + last.FingerprintSHA256
	}
	return errs.New(errs.Unavailable, "NOT_SERVED", "%s did not serve certificate %s within %s: %s", at, want[0], limit, what)
}

// wait tells whether the pause ended before the context did.
func wait(ctx context.Context, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// servedByFiles reads what a target without an endpoint has in its files.
func servedByFiles(r VerifyRequest) (Served, error) {
	err := Validate(r.Type, r.Config, r.Endpoint)
	if err != nil {
		return Served{}, err
	}
	c, err := New(r.Type)
	if err != nil {
		return Served{}, err
	}
	p, err := c.Plan(r.Config)
	if err != nil {
		return Served{}, err
	}
	for _, f := range p.Files {
		if f.Content == plan.FullChain || f.Content == plan.Combined {
			return readServed(f)
		}
	}
	return Served{}, errs.New(errs.Internal, "NOT_SERVED", "the target has no file with a full chain")
}

func readServed(f plan.File) (Served, error) {
	s, err := locate(f, newID(), 0)
	if err != nil {
		return Served{}, coded(err, StepVerify)
	}
	defer s.close()
	data, look, err := s.content(s.Name)
	if err != nil {
		return Served{}, coded(err, StepVerify)
	}
	defer clear(data)
	if look == nil {
		return Served{}, errs.New(errs.NotFound, "NOT_SERVED", "%s does not exist", f.Path)
	}
	list, err := parseCertificates(onlyCertificates(data))
	if err != nil {
		return Served{}, err
	}
	if len(list) == 0 {
		return Served{}, errs.New(errs.NotFound, "NOT_SERVED", "%s holds no certificate", f.Path)
	}
	return served(list, ByFiles), nil
}

// onlyCertificates leaves the key of a combined file out.
func onlyCertificates(data []byte) []byte {
	var b bytes.Buffer
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			_ = pem.Encode(&b, block) // a bytes.Buffer does not fail
		}
	}
	return b.Bytes()
}

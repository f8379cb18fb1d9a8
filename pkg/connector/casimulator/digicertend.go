package casimulator

import (
	"archive/zip"
	"bytes"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"

	"github.com/smallstep/pkcs7"
)

// digicertCancel is page "Update order status".
type digicertCancel struct {
	Status     string `json:"status"`
	Note       string `json:"note"`
	SendEmails bool   `json:"send_emails"`
}

// cancel gives up what is pending of an order.
func (a *digicertAPI) cancel(c *call) reply {
	var in digicertCancel
	if err := c.decode(&in); err != nil {
		return digicertProblem(http.StatusBadRequest, "bad_request_format", err.Error())
	}
	if !strings.EqualFold(in.Status, "CANCELED") {
		return a.wrong(c, "invalid_status", "status is %q, not CANCELED", in.Status) // ours
	}
	o, ok := a.find(c)
	if !ok {
		return a.notFound("order")
	}
	_, err := c.sim.store.update(DigiCert, o.ID, func(o *order) error {
		r, ok := pending(c.now, o)
		if !ok {
			return &badControl{"nothing of the order is pending; it is " + a.orderStatus(c.now, o)}
		}
		r.CancelledAt = c.now
		return nil
	})
	if err != nil {
		return digicertProblem(http.StatusBadRequest, "order_not_cancelable", err.Error()) // ours
	}
	return reply{status: http.StatusNoContent}
}

// digicertRevocation is pages "Revoke certificate" and "Revoke order certificates", which have comment in their tables and
// comments in their examples.
type digicertRevocation struct {
	RevocationReason string `json:"revocation_reason"`
	Comments         string `json:"comments"`
	Comment          string `json:"comment"`
	SkipApproval     bool   `json:"skip_approval"`
}

// digicertReasons are the documented values of revocation_reason.
func digicertReasons() []string {
	return []string{"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"}
}

func (a *digicertAPI) revokeCertificate(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound("certificate")
	}
	r, ok := o.request(c.path("certificate"))
	if !ok {
		r, ok = o.serial(strings.ToUpper(c.path("certificate")))
	}
	if !ok || r.state(c.now) != Issued {
		return a.notFound("certificate")
	}
	if !r.RevokedAt.IsZero() {
		return digicertProblem(http.StatusBadRequest, "already_revoked", "The certificate is revoked already.") // ours
	}
	return a.revoke(c, o, r.ID)
}

func (a *digicertAPI) revokeOrder(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound("order")
	}
	switch a.orderStatus(c.now, o) {
	case "issued", "reissue_pending":
		return a.revoke(c, o, "")
	case "revoked":
		return digicertProblem(http.StatusBadRequest, "already_revoked", "The order is revoked already.") // ours
	}
	return digicertProblem(http.StatusBadRequest, "order_not_issued", "The order is "+a.orderStatus(c.now, o)+".") // ours
}

// revoke does it at once for an administrator's key that says so, else it makes a request for an administrator. The whole order,
// and not only a certificate of it, is meant by an empty number.
func (a *digicertAPI) revoke(c *call, o *order, certificate string) reply {
	in := digicertRevocation{RevocationReason: "unspecified"}
	if err := c.decode(&in); err != nil {
		return digicertProblem(http.StatusBadRequest, "bad_request_format", err.Error())
	}
	if !slices.Contains(digicertReasons(), in.RevocationReason) {
		return a.wrong(c, "invalid_revocation_reason", "there is no revocation_reason %q", in.RevocationReason) // ours
	}
	act := action{
		ID: c.sim.store.id(), Type: "revoke", Request: certificate, Reason: in.RevocationReason, Comment: in.Comments + in.Comment, Asked: c.now,
		Status: "pending",
	}
	changed, err := c.sim.store.update(DigiCert, o.ID, func(o *order) error {
		if r, waits := pending(c.now, o); waits && r.Kind == "reissue" {
			return &badControl{"reissue_pending"}
		}
		if slices.ContainsFunc(o.Actions, func(x action) bool { return x.Status == "pending" && x.Request == certificate }) {
			return &badControl{"request_pending"}
		}
		if in.SkipApproval {
			return o.perform(&act, c.now) // without a request, so that its comment is lost
		}
		o.Actions = append(o.Actions, act)
		return nil
	})
	if err != nil {
		return digicertProblem(http.StatusBadRequest, err.Error(), "The certificate cannot be revoked now.") // the codes are ours
	}
	if in.SkipApproval {
		return reply{status: http.StatusNoContent}
	}
	return jsonReply(http.StatusCreated, a.requestBody(c, changed, &changed.Actions[len(changed.Actions)-1]))
}

// download answers page "Download certificate" for a certificate or for the primary one of an order.
func (a *digicertAPI) download(c *call) reply {
	o, ok := a.find(c)
	if !ok {
		return a.notFound(map[bool]string{true: "order", false: "certificate"}[c.path("certificate") == ""])
	}
	r := a.primary(c.now, o)
	if id := c.path("certificate"); id != "" {
		if r, ok = o.request(id); !ok {
			r, _ = o.serial(strings.ToUpper(id))
		}
	}
	if r.state(c.now) != Issued {
		return digicertProblem(http.StatusBadRequest, "cert_unavailable_processing", "The certificate is not issued yet.") // ours
	}
	der, err := c.sim.certificate(o, r.ID)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return a.format(c, der, fileName(r.CommonName))
}

func fileName(commonName string) string {
	return strings.NewReplacer(".", "_", "*", "star").Replace(commonName)
}

// format renders a certificate (page "Glossary", certificate formats).
func (a *digicertAPI) format(c *call, leaf []byte, name string) reply {
	switch c.path("format") {
	case "pem_all":
		return attachment("application/x-pem-file", encodeCertificates(c.chain(leaf, true)...))
	case "pem_noroot":
		return attachment("application/x-pem-file", encodeCertificates(c.chain(leaf, false)...))
	case "pem_nointermediate":
		return attachment("application/x-pem-file", encodeCertificates(leaf))
	case "p7b", "cer":
		bundle, err := pkcs7.DegenerateCertificate(bytes.Join(c.chain(leaf, true), nil))
		if err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
		return attachment("application/x-pkcs7-certificates", pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: bundle}))
	case "default", "apache":
		return a.zip(c, leaf, name, ".crt")
	case "default_pem":
		return a.zip(c, leaf, name, ".pem")
	case "default_cer":
		return a.zip(c, leaf, name, ".cer")
	}
	return a.wrong(c, "invalid_format_type", "there is no format %q", c.path("format")) // ours
}

func attachment(media string, body []byte) reply {
	return reply{status: http.StatusOK, header: http.Header{"Content-Type": {media}}, body: body}
}

// zip has each certificate in a file of its own.
func (a *digicertAPI) zip(c *call, leaf []byte, name, extension string) reply {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, der := range c.chain(leaf, true) {
		file := "certs/" + name + extension
		switch {
		case bytes.Equal(der, c.sim.authority.root.certificate.Raw):
			file = "certs/TrustedRoot" + extension
		case bytes.Equal(der, c.sim.authority.intermediate.certificate.Raw):
			file = "certs/DigiCertCA" + extension
		}
		f, err := w.Create(file)
		if err == nil {
			_, err = f.Write(encodeCertificates(der))
		}
		if err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
	}
	if err := w.Close(); err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return attachment("application/zip", b.Bytes())
}

// chainOf gives what is above a certificate.
func (a *digicertAPI) chainOf(c *call) reply {
	if _, ok := a.find(c); !ok {
		return a.notFound("certificate")
	}
	above := [][]byte{c.sim.authority.intermediate.certificate.Raw, c.sim.authority.root.certificate.Raw}
	return jsonReply(http.StatusOK, map[string]any{"intermediates": digicertChain(above)})
}

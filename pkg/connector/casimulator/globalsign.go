package casimulator

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// globalSignMedia is the one content type that HVCA takes, letter for letter.
const globalSignMedia = "application/json;charset=utf-8"

// globalsignAPI is GlobalSign's Atlas Certificate Management API (HVCA), version 2. What the published guide leaves
// open is answered so: a request that the CA refuses after it was accepted is 422 on its serial number, an exhausted
// quota is 403, and so is a request without a client certificate.
type globalsignAPI struct {
	sim     *Simulator
	quotaMu sync.Mutex

	mu     sync.Mutex
	ended  map[string]time.Time // tokens that ended before their time, and when that is
	claims map[string]*globalSignClaim
}

func newGlobalSign(s *Simulator) api {
	return &globalsignAPI{sim: s, ended: map[string]time.Time{}, claims: map[string]*globalSignClaim{}}
}

func (a *globalsignAPI) name() string { return GlobalSign }

func (a *globalsignAPI) operations() []operation {
	type handler = func(*call) reply
	op := func(name, method, path string, h handler) operation {
		return operation{name: name, method: method, path: "/v2" + path, clientCertificate: true, handle: a.authorised(h)}
	}
	login := op(opLogin, http.MethodPost, "/login", nil)
	login.handle = a.login
	submit := op(opSubmit, http.MethodPost, "/certificates", a.submit)
	submit.about = a.about
	return append([]operation{
		login, submit,
		op(opStatus, http.MethodGet, "/certificates/{serial}", a.get),
		op(opReissue, http.MethodPost, "/certificates/{serial}", a.rekey),
		op(opRevoke, http.MethodPatch, "/certificates/{serial}", a.revoke),
		op(opRevoke, http.MethodDelete, "/certificates/{serial}", a.revokeOld),
		op(opChain, http.MethodGet, "/trustchain", a.trustChain),
		op(opProfiles, http.MethodGet, "/validationpolicy", a.validationPolicy),
		op(opProbe, http.MethodGet, "/counters/certificates/issued", a.countIssued),
		op(opProbe, http.MethodGet, "/counters/certificates/revoked", a.countRevoked),
		op(opProbe, http.MethodGet, "/quotas/issuance", a.quota),
		op(opList, http.MethodGet, "/stats/issued", a.statsIssued),
		op(opList, http.MethodGet, "/stats/revoked", a.statsRevoked),
		op(opList, http.MethodGet, "/stats/expiring", a.statsExpiring),
	}, a.claimOperations(op)...)
}

// problem is application/problem+json with a description.
func (a *globalsignAPI) problem(status int, message string) reply {
	return globalSignProblem(status, message, nil)
}

func (a *globalsignAPI) refusal(status int, _, message string) reply {
	return a.problem(status, message)
}

// globalSignProblem says besides which fields are wrong.
func globalSignProblem(status int, description string, fields complaints) reply {
	r := jsonReply(status, struct {
		Description string     `json:"description"`
		Errors      complaints `json:"errors,omitempty"`
	}{description, fields})
	r.header.Set("Content-Type", "application/problem+json;charset=utf-8")
	return r
}

func globalSignReply(status int, v any) reply {
	r := jsonReply(status, v)
	if v != nil {
		r.header.Set("Content-Type", globalSignMedia)
	}
	return r
}

func (a *globalsignAPI) locate(c *call) (*order, bool) {
	return a.sim.store.bySerial(GlobalSign, c.path("serial"))
}

// decode reads a body. It gives the answer to one that is wrong.
func (a *globalsignAPI) decode(c *call, into any) (reply, bool) {
	if media := c.request.Header.Get("Content-Type"); media != globalSignMedia {
		return c.refuse(http.StatusUnsupportedMediaType, "content type %q, only %q is taken", media, globalSignMedia), false
	}
	if err := c.decode(into); err != nil {
		return a.problem(http.StatusBadRequest, err.Error()), false
	}
	return reply{}, true
}

// invalid refuses a request that violates the validation policy.
func (a *globalsignAPI) invalid(c *call, wrong complaints) reply {
	// A clock that is off at the CA is not a mistake of the client.
	if _, early := wrong["validity.not_before"]; !early || len(wrong) > 1 || a.sim.clock.Load() == 0 {
		c.violate("validation policy: %v", map[string]string(wrong))
	}
	return globalSignProblem(http.StatusUnprocessableEntity, "request fields are not compliant with the validation policy", wrong)
}

// GlobalSignAccount is what a scenario says of the HVCA account; the zero value is an account with
// DefaultGlobalSignPolicy and a quota that is not reached.
type GlobalSignAccount struct {
	// KeyFormat is PKCS10, the default, or PKCS8.
	KeyFormat string `yaml:"key_format"`
	// KeyType is ECDSA, the default, or RSA.
	KeyType string `yaml:"key_type"`
	// PublicKeySignature is FORBIDDEN, the default, OPTIONAL or REQUIRED.
	PublicKeySignature Presence `yaml:"public_key_signature"`
	// CommonName is OPTIONAL, the default, REQUIRED, FORBIDDEN or STATIC.
	CommonName Presence `yaml:"common_name"`
	// ValiditySeconds is the longest validity.
	ValiditySeconds int64 `yaml:"validity_seconds"`
	// Quota is how many certificates may be issued in all, those of before included. Nil is a million.
	Quota *int `yaml:"quota"`
}

func (g GlobalSignAccount) policy() GlobalSignPolicy {
	p := DefaultGlobalSignPolicy()
	if g.KeyFormat != "" {
		p.PublicKey.KeyFormat = g.KeyFormat
	}
	if g.KeyType == "RSA" {
		p.PublicKey.KeyType, p.PublicKey.AllowedLengths = "RSA", []int{2048, 3072, 4096}
	}
	if g.PublicKeySignature != "" {
		p.PublicKeySignature = g.PublicKeySignature
	}
	if g.CommonName != "" {
		p.SubjectDN.CommonName.Presence = g.CommonName
	}
	if g.ValiditySeconds > 0 {
		p.Validity.SecondsMax = g.ValiditySeconds
	}
	return p
}

func (g GlobalSignAccount) validate() error {
	switch {
	case g.KeyFormat != "" && g.KeyFormat != "PKCS8" && g.KeyFormat != "PKCS10":
		return fmt.Errorf("globalsign: key_format %q is neither PKCS8 nor PKCS10", g.KeyFormat)
	case g.KeyType != "" && g.KeyType != "RSA" && g.KeyType != "ECDSA":
		return fmt.Errorf("globalsign: key_type %q is neither RSA nor ECDSA", g.KeyType)
	case g.ValiditySeconds < 0:
		return fmt.Errorf("globalsign: validity_seconds is negative")
	case g.Quota != nil && *g.Quota < 0:
		return fmt.Errorf("globalsign: quota is negative")
	}
	for field, p := range map[string]Presence{"public_key_signature": g.PublicKeySignature, "common_name": g.CommonName} {
		switch p {
		case "", PresenceRequired, PresenceOptional, PresenceForbidden, PresenceStatic:
		default:
			return fmt.Errorf("globalsign: %s %q is none of REQUIRED, OPTIONAL, FORBIDDEN, STATIC", field, p)
		}
	}
	return nil
}

func (a *globalsignAPI) account() GlobalSignAccount {
	a.sim.mu.Lock()
	defer a.sim.mu.Unlock()
	return a.sim.scenario.GlobalSign
}

func (a *globalsignAPI) validationPolicy(*call) reply {
	return globalSignReply(http.StatusOK, a.account().policy())
}

// login gives a token for ten minutes by the CA's own clock.
func (a *globalsignAPI) login(c *call) reply {
	var in struct {
		APIKey    string `json:"api_key"`
		APISecret string `json:"api_secret"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	want := a.sim.Credentials()
	key := subtle.ConstantTimeCompare([]byte(in.APIKey), []byte(want.GlobalSignAPIKey))
	secret := subtle.ConstantTimeCompare([]byte(in.APISecret), []byte(want.GlobalSignAPISecret))
	if key&secret != 1 {
		return c.refuse(http.StatusUnauthorized, "the API key or secret is wrong")
	}
	token := a.newToken(a.sim.said(c.now))
	r := globalSignReply(http.StatusOK, map[string]string{"access_token": token})
	r.header.Set("Authorization", "Bearer "+token)
	return r
}

// about is what faults may ask of a submission.
func (a *globalsignAPI) about(c *call) subject {
	var in struct {
		SubjectDN struct {
			CommonName string `json:"common_name"`
		} `json:"subject_dn"`
	}
	_ = json.Unmarshal(c.body, &in) // what is wrong with it is said later
	return subject{commonName: in.SubjectDN.CommonName}
}

// Package casimulator is a simulator of the APIs of five commercial CAs, for tests and for trying settings before
// paying for a certificate: DigiCert CertCentral, Sectigo Certificate Manager, GlobalSign Atlas HVCA, Entrust CA
// Gateway and Entrust Certificate Services. It signs with a CA of its own, keeps its orders on disk, so that a
// simulator that was killed and started again on the same directory is the same CA in the middle of its orders, and
// does on request what CAs and networks do at their worst (see Kind).
//
// It is the independent side: it knows the APIs from what the CAs publish and imports nothing of certctl's connectors.
// What it receives it holds against these APIs. A request that the CA would refuse is refused in the CA's own words,
// and recorded as a violation besides, so that a test can require that there was none.
//
// A scenario says how the CA behaves:
//
//	latency: 30s          # a certificate is issued so long after the order was accepted, or approved
//	approval: manual      # none, manual (control API), or a duration after which a human has approved
//	clock: -24h           # the CA's clock is off by so much
//	unlimited: false      # true takes the CA's own rate limits off
//	globalsign:           # the account there, see GlobalSignAccount
//	  key_format: PKCS10  # or PKCS8
//	  quota: 100          # certificates in all
//	seed: 7               # of the random numbers behind probability
//	faults:
//	  - ca: digicert              # digicert, sectigo, globalsign, entrust-gateway, entrust-ecs, or * (default)
//	    operation: submit         # submit, status, collect, list, revoke, login and others, or * (default)
//	    fault: drop_after         # see Kind
//	    common_name: www.example.com
//	    times: 1                  # 0, the default, is without end
//	  - fault: server_error
//	    status: 503
//	    retry_after: 20s
//	    probability: 0.05
package casimulator

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/run"
)

// The CAs, as scenarios and the control API call them. Each is the first element of the path of its API.
const (
	DigiCert       = "digicert"
	Sectigo        = "sectigo"
	GlobalSign     = "globalsign"
	EntrustGateway = "entrust-gateway"
	EntrustECS     = "entrust-ecs"
)

// CAs are the names of all.
func CAs() []string { return []string{DigiCert, Sectigo, GlobalSign, EntrustGateway, EntrustECS} }

// Config of a simulator.
type Config struct {
	// Dir holds all state. The same directory again is the same CA with the same orders. One process has it at a time.
	Dir string
	// Now is the true time; nil is time.Now.
	Now func() time.Time
	// Scenario is how the CAs behave at first. Set, Reset and the control API change it.
	Scenario Scenario
	// Sync waits for the disk before an answer is given, which is for machines that lose power. A process that is killed
	// loses nothing without it.
	Sync bool
}

// Simulator is five CAs. It is safe for concurrent use.
type Simulator struct {
	config    Config
	now       func() time.Time
	clock     atomic.Int64 // what is added to the true time for all that a CA says
	unlock    func()
	store     *store
	authority *authority
	faults    *faultSet
	record    *record
	transport *transport
	kept      keptReplies
	apis      []api
	handler   http.Handler
	group     *run.Group

	mu       sync.Mutex
	scenario Scenario
}

// New opens or makes the CAs in the directory. Close gives it back.
func New(c Config) (*Simulator, error) {
	if c.Dir == "" {
		return nil, errors.New("open CA simulator: no directory given")
	}
	if err := c.Scenario.validate(); err != nil {
		return nil, fmt.Errorf("open CA simulator: %w", err)
	}
	if err := disk.PrivateDir(c.Dir); err != nil {
		return nil, fmt.Errorf("open CA simulator: %w", err)
	}
	unlock, err := disk.Lock(filepath.Join(c.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open CA simulator: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Simulator{config: c, unlock: unlock, record: newRecord(), faults: newFaultSet()}
	s.now = func() time.Time { return c.Now().Round(0).UTC() } // as the journal gives it back
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open CA simulator: %w", err), s.Close())
	}
	return s, nil
}

func (s *Simulator) open() error {
	var err error
	if s.store, err = openStore(filepath.Join(s.config.Dir, "orders.jsonl"), s.config.Sync); err != nil {
		return err
	}
	if s.authority, err = openAuthority(s.config.Dir, s.now()); err != nil {
		return err
	}
	if s.transport, err = openTransport(s.config.Dir, s.now); err != nil {
		return err
	}
	s.apis = []api{newDigiCert(s), newSectigo(s), newGlobalSign(s), newEntrustGateway(s), newEntrustECS(s)}
	s.handler = s.routes(true)
	s.Play(s.config.Scenario)
	return nil
}

// Close ends what Start began and gives the directory back.
func (s *Simulator) Close() error {
	var err error
	if s.group != nil {
		s.group.Stop(nil)
		err = s.group.Wait()
	}
	if s.store != nil {
		err = errors.Join(err, s.store.close())
	}
	if s.unlock != nil {
		s.unlock()
		s.unlock = nil
	}
	return err
}

// Handler serves all APIs and the control API under one host. Client certificates are seen only behind TLSConfig, so
// that routes which require one refuse everybody over plain HTTP.
func (s *Simulator) Handler() http.Handler { return s.handler }

// Play replaces the whole scenario: latency, approval, clock, seed and faults.
func (s *Simulator) Play(sc Scenario) {
	s.mu.Lock()
	s.scenario = sc
	s.mu.Unlock()
	s.clock.Store(int64(sc.Clock))
	s.faults.replace(sc.Faults, sc.Seed)
}

// Set replaces the faults. It panics when one is none, which is a mistake of the test that calls it.
func (s *Simulator) Set(faults ...Fault) {
	for _, f := range faults {
		if err := f.validate(); err != nil {
			panic(err)
		}
	}
	s.mu.Lock()
	seed := s.scenario.Seed
	s.mu.Unlock()
	s.faults.replace(faults, seed)
}

// Happened is how often faults of a kind have happened since the faults were set.
func (s *Simulator) Happened(k Kind) int { return s.faults.happened(k) }

// Reset takes faults, recorded requests, violations and the clock back to how they are in a new simulator without
// a scenario. Orders stay.
func (s *Simulator) Reset() {
	s.Play(Scenario{})
	s.record.reset()
	s.kept.reset()
}

// SetClock sets by how much the CAs' clock is off. It changes what the CAs say and certify, not when orders are issued.
func (s *Simulator) SetClock(offset time.Duration) { s.clock.Store(int64(offset)) }

// said is the time by the CAs' own clock.
func (s *Simulator) said(t time.Time) time.Time {
	return t.Add(time.Duration(s.clock.Load())).UTC()
}

func (s *Simulator) unlimited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scenario.Unlimited
}

func (s *Simulator) behaviour() (latency time.Duration, approval Approval) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scenario.Latency, s.scenario.Approval
}

// Orders is the truth about all orders of all CAs, in the order of their acceptance.
func (s *Simulator) Orders() []Order {
	now := s.now()
	all := s.store.all("")
	out := make([]Order, len(all))
	for i, o := range all {
		out[i] = o.truth(now)
	}
	return out
}

// Requests are those that were received last, oldest first.
func (s *Simulator) Requests() []Request { return s.record.requests() }

// Violations are what clients did wrong, oldest first.
func (s *Simulator) Violations() []Violation { return s.record.violations() }

// CredentialSet is what clients have to present.
type CredentialSet struct {
	DigiCertAPIKey         string `json:"digicert_api_key"`
	DigiCertOrganization   int    `json:"digicert_organization_id"`
	SectigoLogin           string `json:"sectigo_login"`
	SectigoPassword        string `json:"sectigo_password"`
	SectigoCustomerURI     string `json:"sectigo_customer_uri"`
	SectigoOrganization    int    `json:"sectigo_organization_id"`
	SectigoCertType        int    `json:"sectigo_cert_type"`
	GlobalSignAPIKey       string `json:"globalsign_api_key"`
	GlobalSignAPISecret    string `json:"globalsign_api_secret"`
	EntrustGatewayCA       string `json:"entrust_gateway_ca_id"`
	EntrustGatewayProfile  string `json:"entrust_gateway_profile_id"`
	EntrustECSUser         string `json:"entrust_ecs_user"`
	EntrustECSKey          string `json:"entrust_ecs_key"`
	EntrustECSClient       int    `json:"entrust_ecs_client_id"`
	EntrustECSOrganization string `json:"entrust_ecs_organization"`
}

// Credentials are the same in every simulator. They are worth nothing anywhere else.
func (s *Simulator) Credentials() CredentialSet {
	return CredentialSet{ //nolint:gosec // they guard nothing
		DigiCertAPIKey:         "DIGICERT-SIMULATOR-KEY",
		DigiCertOrganization:   123456,
		SectigoLogin:           "simulator",
		SectigoPassword:        "sectigo-simulator-password",
		SectigoCustomerURI:     "simulator-customer",
		SectigoOrganization:    4711,
		SectigoCertType:        224,
		GlobalSignAPIKey:       "0123456789abcdef",
		GlobalSignAPISecret:    "0123456789abcdef0123456789abcdef01234567",
		EntrustGatewayCA:       "simulator~ca",
		EntrustGatewayProfile:  "tls-server",
		EntrustECSUser:         "simulator",
		EntrustECSKey:          "entrust-simulator-key",
		EntrustECSClient:       1,
		EntrustECSOrganization: "Example Inc",
	}
}

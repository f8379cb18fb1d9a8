package serve

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/pkg/version"
	"github.com/certctl/certctl/services/asyncpoller"
	"github.com/certctl/certctl/services/audit"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
	"github.com/certctl/certctl/services/inventory"
	"github.com/certctl/certctl/services/issuance"
	"github.com/certctl/certctl/services/renewalscheduler"
)

// The names of the services: of their schemas, roles, metrics and places in settings.
const (
	nameInventory        = "inventory"
	nameIssuance         = "issuance"
	nameRenewalScheduler = "renewalscheduler"
	nameAsyncPoller      = "asyncpoller"
	nameAudit            = "audit"
	nameGateway          = rpc.Gateway
)

// service is what all five have in common.
type service interface {
	Register(r grpc.ServiceRegistrar)
	AuthzTable() rpc.AuthzTable
	Run(ctx context.Context) error
	Loops() []tick.State
}

// Schemas are the services' parts of the database.
func Schemas() []pg.Schema {
	return []pg.Schema{inventory.Schema(), issuance.Schema(), renewalscheduler.Schema(), asyncpoller.Schema(), audit.Schema()}
}

// Services names what can be served, in the order of a start: who is told comes before who tells.
func Services() []string {
	return []string{nameAudit, nameInventory, nameIssuance, nameRenewalScheduler, nameAsyncPoller}
}

// listens tells whether a service keeps a LISTEN connection; it counts in its quota.
func listens(name string) bool { return name != nameAudit && name != nameAsyncPoller }

// build makes a service by name.
func (p *process) build(name string, db *pg.DB) (service, error) {
	switch name {
	case nameInventory:
		return p.inventory(db)
	case nameIssuance:
		return p.issuance(db)
	case nameRenewalScheduler:
		return p.renewalScheduler(db)
	case nameAsyncPoller:
		return p.asyncPoller(db)
	case nameAudit:
		return audit.New(audit.Config{InternalSecret: p.secret, ChainVerifyInterval: p.cfg.Loops.ChainVerify},
			audit.Deps{DB: db, Log: p.log.Named(name), Metrics: p.registry(name)})
	default:
		return nil, fmt.Errorf("there is no service %q; there are %v and %s", name, Services(), nameGateway)
	}
}

func (p *process) inventory(db *pg.DB) (service, error) {
	peers, err := p.dialAll(nameInventory, nameIssuance, nameRenewalScheduler, nameAudit)
	if err != nil {
		return nil, err
	}
	l := p.cfg.Loops
	return inventory.New(inventory.Config{
		InternalSecret: p.secret, AgentJoinToken: p.cfg.Agents.JoinToken, ServerVersion: version.Version,
		AgentHealthInterval: l.AgentHealth, ShortLivedInterval: l.ShortLivedExpiry, NetworkScanInterval: l.NetworkScan,
		EndpointHealthInterval: l.EndpointHealth, CloudDiscoveryInterval: l.CloudDiscovery, CredentialGCInterval: l.CredentialGC,
	}, inventory.Deps{
		DB: db, Log: p.log.Named(nameInventory), Metrics: p.registry(nameInventory), Targets: targets{},
		Peers: inventory.Peers{Issuance: peers[nameIssuance], RenewalScheduler: peers[nameRenewalScheduler], Audit: peers[nameAudit]},
	})
}

func (p *process) issuance(db *pg.DB) (service, error) {
	peers, err := p.dialAll(nameIssuance, nameInventory, nameRenewalScheduler, nameAsyncPoller, nameAudit)
	if err != nil {
		return nil, err
	}
	box, err := p.box()
	if err != nil {
		return nil, err
	}
	s, err := issuance.New(issuance.Config{
		InternalSecret: p.secret, BootstrapLocalIssuer: true,
		CRLGenerationInterval: p.cfg.Loops.CRLGeneration, EnrolmentGCInterval: p.cfg.Loops.EnrolmentGC,
		OrphanInterval: p.cfg.Loops.OrphanSearch, AccountShare: accountShare(nameIssuance, p.cfg.Postgres.Replicas),
	}, issuance.Deps{
		DB: db, Log: p.log.Named(nameIssuance), Metrics: p.registry(nameIssuance), Box: box, IssuerTypes: p.issuerTypes,
		Peers: issuance.Peers{Inventory: peers[nameInventory], RenewalScheduler: peers[nameRenewalScheduler],
			AsyncPoller: peers[nameAsyncPoller], Audit: peers[nameAudit]},
	})
	if err != nil {
		return nil, err
	}
	p.bootstrap = append(p.bootstrap, s.Bootstrap)
	return s, nil
}

func (p *process) renewalScheduler(db *pg.DB) (service, error) {
	peers, err := p.dialAll(nameRenewalScheduler, nameInventory, nameIssuance, nameAudit)
	if err != nil {
		return nil, err
	}
	l := p.cfg.Loops
	return renewalscheduler.New(renewalscheduler.Config{
		InternalSecret: p.secret, RenewalConcurrency: l.RenewalConcurrency,
		RenewalCheckInterval: l.RenewalCheck, JobProcessorInterval: l.JobProcessor, JobRetryInterval: l.JobRetry,
		JobTimeoutInterval: l.JobTimeout, NotificationProcessInterval: l.NotificationProcess,
		NotificationRetryInterval: l.NotificationRetry, DigestInterval: l.Digest,
	}, renewalscheduler.Deps{
		DB: db, Log: p.log.Named(nameRenewalScheduler), Metrics: p.registry(nameRenewalScheduler),
		Peers: renewalscheduler.Peers{Inventory: peers[nameInventory], Issuance: peers[nameIssuance], Audit: peers[nameAudit]},
	})
}

func (p *process) asyncPoller(db *pg.DB) (service, error) {
	peers, err := p.dialAll(nameAsyncPoller, nameIssuance)
	if err != nil {
		return nil, err
	}
	return asyncpoller.New(pollerConfig(p.cfg), asyncpoller.Deps{
		DB: db, Log: p.log.Named(nameAsyncPoller), Metrics: p.registry(nameAsyncPoller), IssuerTypes: p.issuerTypes,
		Peers: asyncpoller.Peers{Issuance: peers[nameIssuance]},
	})
}

func pollerConfig(cfg settings.Server) asyncpoller.Config {
	replicas := cfg.Postgres.Replicas
	return asyncpoller.Config{
		PollInterval: cfg.Loops.AsyncPoll, MaxWaits: waitBudgets(cfg.Waits),
		Replicas: replicas, AccountShare: accountShare(nameAsyncPoller, replicas),
	}
}

// targets checks settings of targets with the connectors themselves.
type targets struct{}

// Validate implements inventory.TargetValidator.
func (targets) Validate(kind string, config json.RawMessage) error {
	c, err := target.New(kind)
	if err != nil {
		return err
	}
	return c.Validate(config)
}

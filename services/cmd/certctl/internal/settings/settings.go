// Package settings is what the server can be told from outside: one struct, from which the reference is generated too.
package settings

import (
	"errors"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Server is the settings of `certctl serve` and `certctl migrate`.
type Server struct {
	ListenAddr string `env:"CERTCTL_LISTEN_ADDR" envDefault:"127.0.0.1:8443" flag:"listen" check:"address" help:"Where the gateway listens, for REST, gRPC and agents."`
	DataDir    string `env:"CERTCTL_DATA_DIR" envDefault:"./.certctl" flag:"data-dir" help:"Directory for the embedded Postgres, keys and secrets of this installation."`

	Postgres Postgres
	Secrets  Secrets
	TLS      TLS
	Auth     Auth
	Peers    Peers
	Agents   Agents
	Loops    Loops
	Waits    Waits
	Process  Process
}

// Postgres says where the data is.
type Postgres struct {
	URL        secretbox.Secret `env:"CERTCTL_DATABASE_URL" help:"Base URL of Postgres, postgres://USER:PASSWORD@HOST:PORT/DATABASE. Empty: a private Postgres in the data directory."`
	Password   secretbox.Secret `env:"CERTCTL_DATABASE_PASSWORD" help:"Password of the base URL's user, as it is, in place of one in the URL, where special characters would have to be percent-encoded."`
	BinDir     string           `env:"CERTCTL_POSTGRES_BIN" help:"Directory of the programs postgres and initdb, for the private Postgres. Empty: they are looked for."`
	RoleSecret secretbox.Secret `env:"CERTCTL_DATABASE_ROLE_SECRET" help:"What the passwords of the services' roles derive from; not set: the base URL's password. May be a list, comma-separated: migrate sets the passwords from the first, services accept all, and the base URL's password last."`
	Roles      string           `env:"CERTCTL_DATABASE_ROLES" envDefault:"separate" check:"oneof separate shared" help:"separate: each service has its own login role; shared: all use the base login (for managed databases without CREATEROLE)."`
	MaxConns   int              `env:"CERTCTL_DATABASE_MAX_CONNS" envDefault:"50" check:"int 10..10000" help:"Connections of the whole installation."`
	Quotas     string           `env:"CERTCTL_DATABASE_POOL_QUOTAS" envDefault:"inventory=16,issuance=12,renewalscheduler=12,asyncpoller=6,audit=4" help:"Connections of each service, over all its replicas. They add up to CERTCTL_DATABASE_MAX_CONNS."`
	Quota      int              `env:"CERTCTL_DATABASE_QUOTA" check:"int 0..10000" help:"Connections of this service alone, for CERTCTL_DATABASE_ROLES=shared; else the limit counts that migrate has given its role. Not set, or 0: as in CERTCTL_DATABASE_POOL_QUOTAS."`
	Replicas   int              `env:"CERTCTL_SERVICE_REPLICAS" envDefault:"1" check:"int 1..1000" help:"Replicas of this service; each takes its part of the rates of CA accounts. (Connections are shared out by how many there are.)"`
}

// Secrets hold the installation together. All processes of an installation have the same.
type Secrets struct {
	Internal   secretbox.Secret `env:"CERTCTL_INTERNAL_SECRET" help:"At least 16 bytes, from which services know each other. May be a list, comma-separated, while it is replaced: the first is used, all are accepted. Without it, one is made in the data directory; services that run apart need it."`
	Encryption secretbox.Secret `env:"CERTCTL_ENCRYPTION_KEY" help:"Keys for secrets at rest, in the form of the file encryption-key in the data directory: each 32 bytes in base64, on a line of its own or comma-separated; the first encrypts, all decrypt. Without it, one is made there; replicas of issuance need it."`
}

// TLS is the gateway's own certificate.
type TLS struct {
	CertFile   string   `env:"CERTCTL_TLS_CERT_FILE" help:"Certificate chain of the gateway, PEM, read again when it changes. Empty: one from an internal CA in the data directory."`
	KeyFile    string   `env:"CERTCTL_TLS_KEY_FILE" help:"Its key, PEM."`
	CACertFile string   `env:"CERTCTL_TLS_CA_CERT_FILE" help:"CA that the gateway makes its own certificate from when it is given none, PEM, in place of one in the data directory: for replicas, which must have the same. It is not renewed by itself."`
	CAKeyFile  string   `env:"CERTCTL_TLS_CA_KEY_FILE" help:"Key of that CA, PEM."`
	Names      []string `env:"CERTCTL_TLS_NAMES" help:"More names and addresses for the gateway's self-made certificate, comma-separated."`
}

// Auth says who may call the gateway.
type Auth struct {
	Type    string           `env:"CERTCTL_AUTH_TYPE" envDefault:"api-key" help:"api-key or none (development). For anything else put an authenticating proxy in front."`
	Secret  secretbox.Secret `env:"CERTCTL_AUTH_SECRET" help:"API keys, comma-separated: a plain key is an admin's, name:role:key names it; roles are admin, operator, viewer, auditor. All of them work. Without it, serve makes an admin key in the data directory."`
	NoneAck bool             `env:"CERTCTL_AUTH_NONE_ACKNOWLEDGED" envDefault:"false" help:"With CERTCTL_AUTH_TYPE=none: yes, everybody who reaches a non-loopback address may do everything."`
	Origins []string         `env:"CERTCTL_CORS_ORIGINS" help:"Web origins that browsers may call from, comma-separated. Empty: none."`

	CallerRate  int `env:"CERTCTL_RATE_LIMIT_PER_CALLER" envDefault:"100" check:"int 0..1000000" help:"Requests per second of one API key at one replica of the gateway, three times as many at once; what is more is answered with 429. 0: no limit."`
	AddressRate int `env:"CERTCTL_RATE_LIMIT_PER_ADDRESS" envDefault:"500" check:"int 0..1000000" help:"Requests per second of one client address, four times as many at once; agents behind one address are counted apart, with ten times that burst. 0: no limit."`
}

// Peers says where services are when they run apart.
type Peers struct {
	GRPCListenAddr       string `env:"CERTCTL_GRPC_LISTEN_ADDR" envDefault:"127.0.0.1:9443" flag:"grpc-listen" check:"address" help:"Where a service that runs apart listens for its peers."`
	InventoryAddr        string `env:"CERTCTL_INVENTORY_ADDR" envDefault:"inventory:9443" help:"Address of inventory, for services that run apart."`
	IssuanceAddr         string `env:"CERTCTL_ISSUANCE_ADDR" envDefault:"issuance:9443" help:"Address of issuance."`
	RenewalSchedulerAddr string `env:"CERTCTL_RENEWALSCHEDULER_ADDR" envDefault:"renewal-scheduler:9443" help:"Address of renewalscheduler."`
	AsyncPollerAddr      string `env:"CERTCTL_ASYNCPOLLER_ADDR" envDefault:"async-poller:9443" help:"Address of asyncpoller."`
	AuditAddr            string `env:"CERTCTL_AUDIT_ADDR" envDefault:"audit:9443" help:"Address of audit."`
}

// Agents says how agents come in.
type Agents struct {
	JoinToken secretbox.Secret `env:"CERTCTL_AGENT_JOIN_TOKEN" help:"A standing join token for fleets of agents, at least 16 characters. May be a list, comma-separated, of which any is accepted. Empty: tokens are made over the API only."`
	Local     bool             `env:"CERTCTL_LOCAL_AGENT" envDefault:"true" help:"serve without --service also runs an agent on this host."`
	Commands  []string         `env:"CERTCTL_LOCAL_AGENT_COMMANDS" help:"Programs that targets of the agent on this host may have run, absolute paths, comma-separated."`
}

// Loops are the intervals of background work: floors for what nobody announced; events start the same work at once.
type Loops struct {
	RenewalCheck        time.Duration `env:"CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL" envDefault:"1h" check:"duration>=1s" help:"Renewal check."`
	JobProcessor        time.Duration `env:"CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL" envDefault:"30s" check:"duration>=1s" help:"Job processor."`
	JobRetry            time.Duration `env:"CERTCTL_SCHEDULER_RETRY_INTERVAL" envDefault:"5m" check:"duration>=1s" help:"Job retry."`
	JobTimeout          time.Duration `env:"CERTCTL_JOB_TIMEOUT_INTERVAL" envDefault:"10m" check:"duration>=1s" help:"Job timeout reaper."`
	NotificationProcess time.Duration `env:"CERTCTL_SCHEDULER_NOTIFICATION_PROCESS_INTERVAL" envDefault:"1m" check:"duration>=1s" help:"Notification process."`
	NotificationRetry   time.Duration `env:"CERTCTL_NOTIFICATION_RETRY_INTERVAL" envDefault:"2m" check:"duration>=1s" help:"Notification retry."`
	Digest              time.Duration `env:"CERTCTL_DIGEST_INTERVAL" envDefault:"24h" check:"duration>=1m" help:"Digest."`
	AgentHealth         time.Duration `env:"CERTCTL_SCHEDULER_AGENT_HEALTH_CHECK_INTERVAL" envDefault:"2m" check:"duration>=1s" help:"Agent health."`
	ShortLivedExpiry    time.Duration `env:"CERTCTL_SHORT_LIVED_EXPIRY_CHECK_INTERVAL" envDefault:"30s" check:"duration>=1s" help:"Short-lived expiry."`
	NetworkScan         time.Duration `env:"CERTCTL_NETWORK_SCAN_INTERVAL" envDefault:"6h" check:"duration>=1m" help:"Network scan."`
	EndpointHealth      time.Duration `env:"CERTCTL_HEALTH_CHECK_INTERVAL" envDefault:"60s" check:"duration>=1s" help:"Endpoint health."`
	CloudDiscovery      time.Duration `env:"CERTCTL_CLOUD_DISCOVERY_INTERVAL" envDefault:"6h" check:"duration>=1m" help:"Cloud discovery."`
	CredentialGC        time.Duration `env:"CERTCTL_CREDENTIAL_GC_INTERVAL" envDefault:"1h" check:"duration>=1s" help:"Credential expiry."`
	CRLGeneration       time.Duration `env:"CERTCTL_CRL_GENERATION_INTERVAL" envDefault:"1h" check:"duration>=1s" help:"CRL generation."`
	EnrolmentGC         time.Duration `env:"CERTCTL_ACME_SERVER_GC_INTERVAL" envDefault:"1m" check:"duration>=1s" help:"Enrolment GC."`
	OrphanSearch        time.Duration `env:"CERTCTL_ORPHAN_SEARCH_INTERVAL" envDefault:"1h" check:"duration>=1s" help:"Orphan search: comparison of the CAs' lists of orders with the journal."`
	AsyncPoll           time.Duration `env:"CERTCTL_ASYNC_POLL_INTERVAL" envDefault:"5s" check:"duration>=1s" help:"Poll dispatch."`
	ChainVerify         time.Duration `env:"CERTCTL_AUDIT_CHAIN_VERIFY_INTERVAL" envDefault:"6h" check:"duration>=1s" help:"Chain verification."`

	RenewalConcurrency int `env:"CERTCTL_RENEWAL_CONCURRENCY" envDefault:"200" check:"int 1..1000" help:"How many renewals are worked on at a time."`
}

// Waits are the wait budgets: seconds that somebody waits for a CA that answers later, before the job shows that the order is
// still pending at the CA. The order itself has a deadline of its own, which belongs to the issuer.
type Waits struct {
	Default    int `env:"CERTCTL_ASYNC_POLL_MAX_WAIT_SECONDS" check:"int 0..31536000" help:"Seconds after which a job shows that its order is still pending at the CA; from then on the CA is asked every 15 min to 1 h. Not set, or 0: 600."`
	DigiCert   int `env:"CERTCTL_DIGICERT_POLL_MAX_WAIT_SECONDS" check:"int 0..31536000" help:"The same for DigiCert. Not set, or 0: as for all."`
	Entrust    int `env:"CERTCTL_ENTRUST_POLL_MAX_WAIT_SECONDS" check:"int 0..31536000" help:"The same for Entrust, CA Gateway and ECS."`
	GlobalSign int `env:"CERTCTL_GLOBALSIGN_POLL_MAX_WAIT_SECONDS" check:"int 0..31536000" help:"The same for GlobalSign."`
	Sectigo    int `env:"CERTCTL_SECTIGO_POLL_MAX_WAIT_SECONDS" check:"int 0..31536000" help:"The same for Sectigo."`
}

// Process is how a process shows itself.
type Process struct {
	MetricsAddr string `env:"CERTCTL_METRICS_LISTEN_ADDR" flag:"metrics-listen" help:"Where /metrics and /loops of this process are served, HTTP without a key. Empty: nowhere."`
	HealthAddr  string `env:"CERTCTL_HEALTH_LISTEN_ADDR" flag:"health-listen" help:"Where a service that runs apart serves grpc.health.v1 for probes (the gateway has /health), gRPC without TLS and without a key: \"\" is readiness, \"liveness\" that the process answers. Empty: nowhere."`
	LogLevel    string `env:"CERTCTL_LOG_LEVEL" envDefault:"info" check:"oneof debug info warn error" help:"Least level of log lines."`
	LogFormat   string `env:"CERTCTL_LOG_FORMAT" envDefault:"console" check:"oneof console json" help:"Form of log lines."`
}

// ServiceQuotas answers each service's connections, over all its replicas.
func (p Postgres) ServiceQuotas() (pg.Quotas, error) {
	quotas, err := pg.ParseQuotas(p.Quotas, p.MaxConns)
	if err != nil {
		return nil, fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: %w", err)
	}
	return quotas, nil
}

// Validate is asked after all values are right.
func (s Server) Validate() error {
	if _, err := s.Postgres.ServiceQuotas(); err != nil {
		return err
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		return errors.New("CERTCTL_TLS_CERT_FILE and CERTCTL_TLS_KEY_FILE belong together: set both or none")
	}
	if (s.TLS.CACertFile == "") != (s.TLS.CAKeyFile == "") {
		return errors.New("CERTCTL_TLS_CA_CERT_FILE and CERTCTL_TLS_CA_KEY_FILE belong together: set both or none")
	}
	if s.TLS.CACertFile != "" && s.TLS.CertFile != "" {
		return errors.New("CERTCTL_TLS_CA_CERT_FILE makes the gateway's certificate and CERTCTL_TLS_CERT_FILE is one: set only one of them")
	}
	return s.validateSecrets()
}

// validateSecrets looks at each item of the secrets that may be lists.
func (s Server) validateSecrets() error {
	for _, list := range []struct {
		name  string
		value secretbox.Secret
		least int
	}{
		{"CERTCTL_INTERNAL_SECRET", s.Secrets.Internal, secretbox.MinSecret},
		{"CERTCTL_AGENT_JOIN_TOKEN", s.Agents.JoinToken, secretbox.MinSecret},
		{"CERTCTL_DATABASE_ROLE_SECRET", s.Postgres.RoleSecret, 1},
	} {
		if list.value.IsZero() {
			continue
		}
		if _, err := list.value.List(list.least); err != nil {
			return fmt.Errorf("%s: %w; make one with: openssl rand -hex 32", list.name, err)
		}
	}
	if s.Secrets.Encryption.IsZero() {
		return nil
	}
	if _, err := secretbox.ParseKeys(s.Secrets.Encryption); err != nil {
		return fmt.Errorf("CERTCTL_ENCRYPTION_KEY: %w; make one with: openssl rand -base64 32", err)
	}
	return nil
}

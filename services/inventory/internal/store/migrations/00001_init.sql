-- +goose Up

CREATE TABLE agents (
    id              text        PRIMARY KEY,
    name            text        NOT NULL,
    instance_id     text        NOT NULL,
    hostname        text        NOT NULL DEFAULT '',
    os              text        NOT NULL DEFAULT '',
    architecture    text        NOT NULL DEFAULT '',
    version         text        NOT NULL DEFAULT '',
    ip_address      text        NOT NULL DEFAULT '',
    labels          jsonb       NOT NULL DEFAULT '{}',
    capabilities    text[]      NOT NULL DEFAULT '{}',
    status          text        NOT NULL CHECK (status IN ('ONLINE', 'OFFLINE', 'RETIRED')),
    last_seen_time  timestamptz,
    -- Until when the name may be enrolled again, once.
    reenroll_until  timestamptz,
    create_time     timestamptz NOT NULL DEFAULT now(),
    update_time     timestamptz NOT NULL DEFAULT now(),
    retire_time     timestamptz,
    revision        integer     NOT NULL DEFAULT 1,
    CHECK ((status = 'RETIRED') = (retire_time IS NOT NULL))
);
-- A retired agent's name is free again.
CREATE UNIQUE INDEX agents_name_taken ON agents (name) WHERE status <> 'RETIRED';
CREATE INDEX agents_by_name ON agents (name, id);
CREATE INDEX agents_by_create_time ON agents (create_time, id);
CREATE INDEX agents_by_status ON agents (status, create_time, id);
CREATE INDEX agents_labels ON agents USING gin (labels jsonb_path_ops);

-- Counter of each agent's mailbox: raised under the row's lock, so that its numbers become visible in their order. Apart
-- from agents, whose rows change with every heartbeat.
CREATE TABLE mailboxes (
    agent_id text   PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    revision bigint NOT NULL DEFAULT 0
);

-- Numbers streams in the order in which they were opened, whichever replica holds them.
CREATE SEQUENCE stream_epochs;

CREATE TABLE agent_credentials (
    id            uuid        PRIMARY KEY,
    agent_id      text        NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    -- SHA-256 over the credential, which has 32 random bytes and needs no salt.
    hash          bytea       NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    -- UNUSED: given out and not yet seen. At its first use the agent's others are revoked.
    status        text        NOT NULL CHECK (status IN ('UNUSED', 'ACTIVE', 'REVOKED')),
    -- Join token that it was given out for; empty for a rotation.
    join_token_id text        NOT NULL DEFAULT '',
    create_time   timestamptz NOT NULL DEFAULT now(),
    use_time      timestamptz,
    revoke_time   timestamptz
);
CREATE INDEX agent_credentials_agent ON agent_credentials (agent_id, status);
CREATE INDEX agent_credentials_revoked ON agent_credentials (revoke_time) WHERE status = 'REVOKED';

CREATE TABLE join_tokens (
    id                 text        PRIMARY KEY,
    hash               bytea       NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    max_uses           integer     NOT NULL CHECK (max_uses > 0),
    uses               integer     NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    expire_time        timestamptz NOT NULL,
    allow_reenrollment boolean     NOT NULL DEFAULT false,
    create_time        timestamptz NOT NULL DEFAULT now(),
    created_by         text        NOT NULL DEFAULT ''
);
CREATE INDEX join_tokens_by_create_time ON join_tokens (create_time, id);
CREATE INDEX join_tokens_expire ON join_tokens (expire_time);

CREATE TABLE targets (
    id                   text        PRIMARY KEY,
    name                 text        NOT NULL,
    agent_id             text        NOT NULL REFERENCES agents (id),
    type                 text        NOT NULL,
    config               jsonb       NOT NULL DEFAULT '{}',
    endpoint_address     text        NOT NULL DEFAULT '',
    endpoint_server_name text        NOT NULL DEFAULT '',
    endpoint_starttls    text        NOT NULL DEFAULT '',
    create_time          timestamptz NOT NULL DEFAULT now(),
    update_time          timestamptz NOT NULL DEFAULT now(),
    revision             integer     NOT NULL DEFAULT 1
);
CREATE INDEX targets_by_name ON targets (name, id);
CREATE INDEX targets_by_create_time ON targets (create_time, id);
CREATE INDEX targets_by_agent ON targets (agent_id, create_time, id);
CREATE INDEX targets_by_type ON targets (type, create_time, id);

CREATE TABLE certificates (
    id                 text        PRIMARY KEY,
    name               text        NOT NULL,
    common_name        text        NOT NULL DEFAULT '',
    dns_names          text[]      NOT NULL DEFAULT '{}',
    ip_addresses       text[]      NOT NULL DEFAULT '{}',
    email_addresses    text[]      NOT NULL DEFAULT '{}',
    uris               text[]      NOT NULL DEFAULT '{}',
    -- Lower-cased name, common name and alternative names, a line each: what the filter "name" looks in. The store
    -- writes it; array_to_string is not immutable, so a generated column cannot.
    search_text        text        NOT NULL,
    issuer_id          text        NOT NULL,
    profile_id         text        NOT NULL,
    policy_id          text        NOT NULL,
    key_algorithm      text        NOT NULL DEFAULT '',
    owner              text        NOT NULL DEFAULT '',
    team               text        NOT NULL DEFAULT '',
    environment        text        NOT NULL DEFAULT '',
    labels             jsonb       NOT NULL DEFAULT '{}',
    status             text        NOT NULL CHECK (status IN ('PENDING', 'ACTIVE', 'EXPIRED', 'REVOKED', 'ARCHIVED')),
    current_version    integer     NOT NULL DEFAULT 0 CHECK (current_version >= 0),
    serial_number      text        NOT NULL DEFAULT '',
    fingerprint_sha256 text        NOT NULL DEFAULT '',
    not_before         timestamptz,
    not_after          timestamptz,
    revocation_time    timestamptz,
    revocation_reason  text        NOT NULL DEFAULT '',
    create_time        timestamptz NOT NULL DEFAULT now(),
    update_time        timestamptz NOT NULL DEFAULT now(),
    revision           integer     NOT NULL DEFAULT 1,
    CHECK (status NOT IN ('ACTIVE', 'EXPIRED') OR (current_version > 0 AND not_after IS NOT NULL)),
    CHECK (status <> 'REVOKED' OR revocation_time IS NOT NULL)
);
CREATE INDEX certificates_by_create_time ON certificates (create_time, id);
CREATE INDEX certificates_by_update_time ON certificates (update_time, id);
CREATE INDEX certificates_by_name ON certificates (name, id);
-- A certificate without an end sorts last, by a key that the list can be continued at.
CREATE INDEX certificates_by_not_after ON certificates ((COALESCE(not_after, 'infinity'::timestamptz)), id);
CREATE INDEX certificates_by_status ON certificates (status, create_time, id);
CREATE INDEX certificates_by_issuer ON certificates (issuer_id, create_time, id);
CREATE INDEX certificates_by_profile ON certificates (profile_id, create_time, id);
CREATE INDEX certificates_by_policy ON certificates (policy_id, create_time, id);
CREATE INDEX certificates_by_owner ON certificates (owner, create_time, id);
CREATE INDEX certificates_by_team ON certificates (team, create_time, id);
CREATE INDEX certificates_by_environment ON certificates (environment, create_time, id);
CREATE INDEX certificates_labels ON certificates USING gin (labels jsonb_path_ops);
CREATE INDEX certificates_active_end ON certificates (not_after) WHERE status = 'ACTIVE';

CREATE TABLE certificate_versions (
    certificate_id     text        NOT NULL REFERENCES certificates (id),
    version            integer     NOT NULL CHECK (version > 0),
    order_id           text        NOT NULL UNIQUE,
    -- Holder of the key; empty: the caller.
    agent_id           text        NOT NULL DEFAULT '',
    serial_number      text        NOT NULL,
    fingerprint_sha256 text        NOT NULL,
    public_key_sha256  text        NOT NULL,
    issuer_dn          text        NOT NULL,
    subject_dn         text        NOT NULL,
    not_before         timestamptz NOT NULL,
    not_after          timestamptz NOT NULL,
    key_algorithm      text        NOT NULL DEFAULT '',
    certificate_pem    text        NOT NULL,
    chain_pem          text        NOT NULL DEFAULT '',
    revocation_time    timestamptz,
    revocation_reason  text        NOT NULL DEFAULT '',
    -- PENDING: the CA is being told; DONE: it knows.
    revocation_state   text        NOT NULL DEFAULT '' CHECK (revocation_state IN ('', 'PENDING', 'DONE')),
    create_time        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (certificate_id, version),
    CHECK ((revocation_state = '') = (revocation_time IS NULL))
);
CREATE INDEX certificate_versions_holder ON certificate_versions (certificate_id, agent_id, version);
CREATE INDEX certificate_versions_serial ON certificate_versions (serial_number);
CREATE INDEX certificate_versions_fingerprint ON certificate_versions (fingerprint_sha256);

CREATE TABLE certificate_targets (
    certificate_id text NOT NULL REFERENCES certificates (id),
    target_id      text NOT NULL REFERENCES targets (id),
    PRIMARY KEY (certificate_id, target_id)
);
CREATE INDEX certificate_targets_target ON certificate_targets (target_id, certificate_id);

CREATE TABLE deployments (
    id                 text        PRIMARY KEY,
    certificate_id     text        NOT NULL REFERENCES certificates (id),
    target_id          text        NOT NULL REFERENCES targets (id),
    agent_id           text        NOT NULL REFERENCES agents (id),
    status             text        NOT NULL CHECK (status IN ('PENDING', 'DEPLOYING', 'SERVED', 'DRIFTED', 'FAILED')),
    desired_version    integer     NOT NULL CHECK (desired_version > 0),
    deployed_version   integer     NOT NULL DEFAULT 0,
    served_version     integer     NOT NULL DEFAULT 0,
    served_fingerprint text        NOT NULL DEFAULT '',
    verify_time        timestamptz,
    verified_address   text        NOT NULL DEFAULT '',
    -- Reload even if the bytes on the host are right already.
    force              boolean     NOT NULL DEFAULT false,
    attempt            integer     NOT NULL DEFAULT 0,
    -- When the dispatcher looks at it next: to put work into the mailbox, to retry, or to verify. No state is final.
    due_time           timestamptz NOT NULL,
    deadline_time      timestamptz,
    error_reason       text        NOT NULL DEFAULT '',
    error_message      text        NOT NULL DEFAULT '',
    -- Key of the last request for it.
    request_key        text        NOT NULL DEFAULT '',
    create_time        timestamptz NOT NULL DEFAULT now(),
    update_time        timestamptz NOT NULL DEFAULT now(),
    revision           integer     NOT NULL DEFAULT 1,
    UNIQUE (certificate_id, target_id),
    CHECK (status NOT IN ('PENDING', 'DEPLOYING') OR deadline_time IS NOT NULL)
);
CREATE INDEX deployments_by_create_time ON deployments (create_time, id);
CREATE INDEX deployments_by_update_time ON deployments (update_time, id);
CREATE INDEX deployments_by_certificate ON deployments (certificate_id, create_time, id);
CREATE INDEX deployments_by_target ON deployments (target_id, create_time, id);
CREATE INDEX deployments_by_agent ON deployments (agent_id, create_time, id);
CREATE INDEX deployments_by_status ON deployments (status, create_time, id);
CREATE INDEX deployments_due ON deployments (due_time);

-- The agents' mailboxes.
CREATE TABLE assignments (
    id             uuid        PRIMARY KEY,
    agent_id       text        NOT NULL REFERENCES agents (id),
    kind           text        NOT NULL CHECK (kind IN ('CREATE_CSR', 'DEPLOY', 'VERIFY')),
    status         text        NOT NULL CHECK (status IN ('OPEN', 'LEASED', 'DONE', 'FAILED', 'CANCELLED')),
    -- Place in the agent's mailbox; raised when the work comes back.
    mailbox        bigint      NOT NULL,
    certificate_id text        NOT NULL,
    deployment_id  text,
    version        integer     NOT NULL DEFAULT 0,
    -- certctl.agent.v1.CreateCsr; deployments are put together when they are read, from what is true then.
    payload        bytea,
    lease_id       uuid,
    lease_until    timestamptz,
    attempts       integer     NOT NULL DEFAULT 0,
    due_time       timestamptz NOT NULL,
    deadline_time  timestamptz NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    end_time       timestamptz,
    CHECK ((status IN ('OPEN', 'LEASED')) = (end_time IS NULL)),
    CHECK (status <> 'LEASED' OR (lease_id IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK ((kind = 'CREATE_CSR') = (deployment_id IS NULL))
);
CREATE INDEX assignments_mailbox ON assignments (agent_id, mailbox) WHERE status IN ('OPEN', 'LEASED');
CREATE UNIQUE INDEX assignments_one_per_deployment ON assignments (deployment_id) WHERE status IN ('OPEN', 'LEASED') AND deployment_id IS NOT NULL;
CREATE INDEX assignments_lease ON assignments (lease_until) WHERE status = 'LEASED';
CREATE INDEX assignments_deadline ON assignments (deadline_time) WHERE status IN ('OPEN', 'LEASED');
CREATE INDEX assignments_certificate ON assignments (certificate_id) WHERE status IN ('OPEN', 'LEASED');
CREATE INDEX assignments_ended ON assignments (end_time) WHERE end_time IS NOT NULL;

-- Certificates that were found and are not managed. Nothing writes them yet.
CREATE TABLE discovered_certificates (
    id                 text        PRIMARY KEY,
    fingerprint_sha256 text        NOT NULL UNIQUE,
    common_name        text        NOT NULL DEFAULT '',
    dns_names          text[]      NOT NULL DEFAULT '{}',
    issuer_dn          text        NOT NULL DEFAULT '',
    subject_dn         text        NOT NULL DEFAULT '',
    serial_number      text        NOT NULL DEFAULT '',
    not_before         timestamptz NOT NULL,
    not_after          timestamptz NOT NULL,
    status             text        NOT NULL CHECK (status IN ('UNMANAGED', 'MANAGED', 'DISMISSED')),
    first_seen_time    timestamptz NOT NULL DEFAULT now(),
    last_seen_time     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX discovered_certificates_by_last_seen ON discovered_certificates (last_seen_time, id);
CREATE INDEX discovered_certificates_by_not_after ON discovered_certificates (not_after, id);
CREATE INDEX discovered_certificates_by_status ON discovered_certificates (status, last_seen_time, id);

-- Shared machinery: idempotency keys, revisions of collections, outbox and inbox.
CREATE TABLE idempotency_keys (
    caller      text        NOT NULL,
    key         text        NOT NULL,
    request     bytea       NOT NULL,
    response    bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_keys_create_time ON idempotency_keys (create_time);

CREATE TABLE collection_revisions (
    collection text     NOT NULL,
    shard      smallint NOT NULL,
    revision   bigint   NOT NULL,
    PRIMARY KEY (collection, shard)
);

CREATE TABLE outbox (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      uuid        NOT NULL,
    destination   text        NOT NULL,
    type          text        NOT NULL,
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    payload       bytea       NOT NULL,
    request_id    text        NOT NULL DEFAULT '',
    create_time   timestamptz NOT NULL DEFAULT now(),
    attempts      integer     NOT NULL DEFAULT 0,
    due_time      timestamptz NOT NULL DEFAULT now(),
    dead          boolean     NOT NULL DEFAULT false,
    last_error    text        NOT NULL DEFAULT ''
);
CREATE INDEX outbox_undelivered ON outbox (destination, id) WHERE NOT dead;
CREATE INDEX outbox_waiting ON outbox (destination, resource_type, resource_id, id) WHERE attempts > 0 AND NOT dead;
CREATE INDEX outbox_dead ON outbox (destination) WHERE dead;

CREATE TABLE outbox_leases (
    destination text        PRIMARY KEY,
    lease_id    uuid        NOT NULL,
    lease_until timestamptz NOT NULL
);

CREATE TABLE inbox (
    event_id    uuid        PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_create_time ON inbox (create_time);

-- Substring search by name. pg_trgm is trusted since PostgreSQL 13: the database's owner may create it, where the
-- server has it installed. Without it the filter works all the same and reads the whole table; after installing the
-- extension, the three statements below can be run by hand. The operator class is named with its schema, because
-- the extension may have been there already, in a schema that is not in the search path.
-- +goose StatementBegin
DO $$
DECLARE
    home text;
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
    EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
        RAISE WARNING 'pg_trgm cannot be created (%): searches by name will read whole tables', SQLERRM;
        RETURN;
    END;
    SELECT n.nspname INTO home FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm';
    EXECUTE format('CREATE INDEX certificates_search ON certificates USING gin (search_text %I.gin_trgm_ops)', home);
    EXECUTE format('CREATE INDEX targets_search ON targets USING gin (lower(name) %I.gin_trgm_ops)', home);
    EXECUTE format('CREATE INDEX agents_search ON agents USING gin (lower(name) %I.gin_trgm_ops)', home);
END $$;
-- +goose StatementEnd

-- +goose Up

-- Connections to CAs. A deleted issuer that orders refer to stays, so that what it issued can still be revoked.
CREATE TABLE issuers (
    id             text        PRIMARY KEY,
    name           text        NOT NULL,
    type           text        NOT NULL,
    -- Settings without secrets.
    config         jsonb       NOT NULL,
    -- Changes with settings and secrets, and with nothing else: the key of connector instances.
    config_hash    text        NOT NULL,
    enabled        boolean     NOT NULL,
    status         text        NOT NULL DEFAULT 'UNTESTED' CHECK (status IN ('UNTESTED', 'OK', 'FAILING')),
    last_test_time timestamptz,
    last_error     text        NOT NULL DEFAULT '',
    create_time    timestamptz NOT NULL DEFAULT now(),
    update_time    timestamptz NOT NULL DEFAULT now(),
    delete_time    timestamptz,
    revision       integer     NOT NULL DEFAULT 1
);
CREATE INDEX issuers_create_time ON issuers (create_time, id) WHERE delete_time IS NULL;
CREATE INDEX issuers_name ON issuers (name, id) WHERE delete_time IS NULL;
CREATE INDEX issuers_type_create_time ON issuers (type, create_time, id) WHERE delete_time IS NULL;
CREATE INDEX issuers_type_name ON issuers (type, name, id) WHERE delete_time IS NULL;

-- Secrets of issuers, each sealed for its own place.
CREATE TABLE issuer_secrets (
    issuer_id text  NOT NULL REFERENCES issuers ON DELETE CASCADE,
    name      text  NOT NULL,
    sealed    bytea NOT NULL,
    PRIMARY KEY (issuer_id, name)
);

CREATE TABLE profiles (
    id                       text        PRIMARY KEY,
    name                     text        NOT NULL,
    description              text        NOT NULL DEFAULT '',
    allowed_san_patterns     text[]      NOT NULL,
    allow_wildcards          boolean     NOT NULL,
    allowed_key_algorithms   text[]      NOT NULL CHECK (cardinality(allowed_key_algorithms) > 0),
    extended_key_usages      text[]      NOT NULL CHECK (cardinality(extended_key_usages) > 0),
    max_validity_seconds     bigint      NOT NULL CHECK (max_validity_seconds > 0),
    requires_approval        boolean     NOT NULL,
    approval_timeout_seconds bigint      NOT NULL CHECK (approval_timeout_seconds > 0),
    create_time              timestamptz NOT NULL DEFAULT now(),
    update_time              timestamptz NOT NULL DEFAULT now(),
    revision                 integer     NOT NULL DEFAULT 1
);
CREATE INDEX profiles_create_time ON profiles (create_time, id);
CREATE INDEX profiles_name ON profiles (name, id);

-- The journal. A row is written before the CA is called, and what it asks for never changes after that.
CREATE TABLE orders (
    id                  text        PRIMARY KEY,
    certificate_id      text        NOT NULL,
    job_id              text        NOT NULL DEFAULT '',
    agent_id            text        NOT NULL DEFAULT '',
    issuer_id           text        NOT NULL REFERENCES issuers,
    profile_id          text        NOT NULL,
    status              text        NOT NULL CHECK (status IN
        ('CREATED', 'SUBMITTING', 'PENDING', 'ISSUED', 'REJECTED', 'FAILED', 'CANCELLED', 'UNKNOWN')),
    common_name         text        NOT NULL DEFAULT '',
    dns_names           text[]      NOT NULL,
    ip_addresses        text[]      NOT NULL,
    email_addresses     text[]      NOT NULL,
    uris                text[]      NOT NULL,
    extended_key_usages text[]      NOT NULL,
    lifetime_seconds    bigint      NOT NULL CHECK (lifetime_seconds > 0),
    csr                 bytea       NOT NULL,
    csr_sha256          text        NOT NULL,
    -- Hash over all that the caller asked for: the same id with another hash is a conflict.
    request_sha256      bytea       NOT NULL,
    -- Chosen with the intent where the CA takes it, else known with the certificate.
    serial_number       text        NOT NULL DEFAULT '',
    ca_reference        jsonb       NOT NULL DEFAULT '{}',
    poll_attempts       integer     NOT NULL DEFAULT 0,
    next_poll_time      timestamptz,
    error_reason        text        NOT NULL DEFAULT '',
    error_message       text        NOT NULL DEFAULT '',
    create_time         timestamptz NOT NULL,
    submit_time         timestamptz,
    issue_time          timestamptz,
    end_time            timestamptz,
    deadline_time       timestamptz NOT NULL,
    due_time            timestamptz,
    attempts            integer     NOT NULL DEFAULT 0,
    lease_id            uuid,
    lease_until         timestamptz,
    revision            integer     NOT NULL DEFAULT 1,
    -- What is not final has a next time, what is final has none.
    CONSTRAINT orders_due CHECK ((status IN ('CREATED', 'SUBMITTING', 'PENDING', 'UNKNOWN')) = (due_time IS NOT NULL)),
    CONSTRAINT orders_end CHECK ((status IN ('ISSUED', 'REJECTED', 'FAILED', 'CANCELLED')) = (end_time IS NOT NULL))
);
CREATE INDEX orders_create_time ON orders (create_time, id);
CREATE INDEX orders_certificate ON orders (certificate_id, create_time, id);
CREATE INDEX orders_issuer ON orders (issuer_id, create_time, id);
CREATE INDEX orders_job ON orders (job_id, create_time, id) WHERE job_id <> '';
CREATE INDEX orders_status ON orders (status, create_time, id);
CREATE INDEX orders_due ON orders (due_time, id) WHERE due_time IS NOT NULL;
CREATE INDEX orders_issuer_open ON orders (issuer_id) WHERE due_time IS NOT NULL;

-- Every certificate that a CA handed over and that passed the check.
CREATE TABLE issued_certificates (
    issuer_id          text        NOT NULL,
    serial_number      text        NOT NULL,
    order_id           text        NOT NULL UNIQUE REFERENCES orders,
    certificate_id     text        NOT NULL,
    fingerprint_sha256 text        NOT NULL,
    not_before         timestamptz NOT NULL,
    not_after          timestamptz NOT NULL,
    certificate_pem    text        NOT NULL,
    PRIMARY KEY (issuer_id, serial_number)
);
CREATE INDEX issued_certificates_certificate ON issued_certificates (certificate_id, not_after);

-- The first revocation of a certificate stays.
CREATE TABLE revocations (
    id              text        PRIMARY KEY,
    issuer_id       text        NOT NULL,
    serial_number   text        NOT NULL,
    certificate_id  text        NOT NULL,
    reason          smallint    NOT NULL CHECK (reason BETWEEN 0 AND 10 AND reason NOT IN (7, 8)),
    revocation_time timestamptz NOT NULL,
    not_after       timestamptz NOT NULL,
    -- UNSUPPORTED: neither the connector nor a CRL can tell anybody.
    status          text        NOT NULL CHECK (status IN ('PENDING', 'DONE', 'FAILED', 'UNSUPPORTED')),
    last_error      text        NOT NULL DEFAULT '',
    create_time     timestamptz NOT NULL DEFAULT now(),
    end_time        timestamptz,
    -- The first CRL that lists it; null until then.
    crl_number      bigint,
    due_time        timestamptz,
    attempts        integer     NOT NULL DEFAULT 0,
    lease_id        uuid,
    lease_until     timestamptz,
    UNIQUE (issuer_id, serial_number),
    FOREIGN KEY (issuer_id, serial_number) REFERENCES issued_certificates,
    CONSTRAINT revocations_due CHECK ((status = 'PENDING') = (due_time IS NOT NULL))
);
CREATE INDEX revocations_due ON revocations (due_time, id) WHERE due_time IS NOT NULL;
CREATE INDEX revocations_unlisted ON revocations (issuer_id) WHERE crl_number IS NULL;
CREATE INDEX revocations_crl ON revocations (issuer_id, not_after);
CREATE INDEX revocations_certificate ON revocations (certificate_id);

-- Certificate revocation lists, RFC 5280, section 5. The primary key decides between replicas.
CREATE TABLE crls (
    issuer_id   text        NOT NULL REFERENCES issuers ON DELETE CASCADE,
    number      bigint      NOT NULL CHECK (number > 0),
    der         bytea       NOT NULL,
    entries     integer     NOT NULL,
    this_update timestamptz NOT NULL,
    next_update timestamptz NOT NULL,
    PRIMARY KEY (issuer_id, number)
);

-- What a first start made, so that it is not made again after somebody deleted it.
CREATE TABLE bootstrap (
    name        text        PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);

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

-- +goose Up

-- Renewal policies. A null fraction and a null renew_before mean 2/3 of the lifetime.
CREATE TABLE policies (
    id                   text        PRIMARY KEY,
    name                 text        NOT NULL,
    renew_at_fraction    double precision CHECK (renew_at_fraction > 0 AND renew_at_fraction < 1),
    renew_before_seconds bigint      CHECK (renew_before_seconds > 0),
    automatic            boolean     NOT NULL,
    max_attempts         integer     NOT NULL CHECK (max_attempts BETWEEN 1 AND 100),
    alert_days           integer[]   NOT NULL,
    freeze_windows       jsonb       NOT NULL,
    create_time          timestamptz NOT NULL,
    update_time          timestamptz NOT NULL,
    revision             integer     NOT NULL,
    CHECK (renew_at_fraction IS NULL OR renew_before_seconds IS NULL)
);
CREATE INDEX policies_create_time ON policies (create_time, id);
CREATE INDEX policies_name ON policies (name, id);

-- The one policy that an installation begins with. A migration runs once, so that it stays away when it is deleted.
INSERT INTO policies (id, name, automatic, max_attempts, alert_days, freeze_windows, create_time, update_time, revision)
VALUES ('pol-default', 'Default', true, 5, '{30,14,7,1}', '[]', now(), now(), 1);

-- One plan per certificate: when its next job opens, and why.
CREATE TABLE plans (
    id                 text        PRIMARY KEY, -- certificate id
    state              text        NOT NULL CHECK (state IN ('SCHEDULED', 'RETRYING', 'WORKING', 'IDLE', 'ENDED')),
    policy_id          text        NOT NULL,
    policy_revision    integer     NOT NULL,
    certificate_status text        NOT NULL,
    requested_by       text        NOT NULL,
    renew_at           timestamptz,
    not_after          timestamptz,
    rule               text        NOT NULL DEFAULT '',
    freeze_reason      text        NOT NULL DEFAULT '',
    frozen_until       timestamptz,
    failures           integer     NOT NULL DEFAULT 0,
    retry_time         timestamptz,
    reopen             boolean     NOT NULL DEFAULT false,
    create_time        timestamptz NOT NULL,
    update_time        timestamptz NOT NULL,
    due_time           timestamptz,
    attempts           integer     NOT NULL DEFAULT 0,
    lease_id           uuid,
    lease_until        timestamptz,
    CHECK ((state IN ('SCHEDULED', 'RETRYING')) = (due_time IS NOT NULL))
);
CREATE INDEX plans_due ON plans (due_time, id) WHERE state IN ('SCHEDULED', 'RETRYING');
CREATE INDEX plans_renew_at ON plans (renew_at, id) WHERE renew_at IS NOT NULL;
CREATE INDEX plans_policy ON plans (policy_id, policy_revision, id);

-- The newest version for each key of a certificate; the plan follows the one that must be renewed first.
CREATE TABLE plan_keys (
    certificate_id text        NOT NULL REFERENCES plans (id) ON DELETE CASCADE,
    agent_id       text        NOT NULL,
    version        integer     NOT NULL,
    not_before     timestamptz NOT NULL,
    not_after      timestamptz NOT NULL,
    PRIMARY KEY (certificate_id, agent_id)
);

CREATE TABLE jobs (
    id                text        PRIMARY KEY,
    type              text        NOT NULL CHECK (type IN ('ISSUE', 'RENEW', 'DEPLOY', 'REVOKE')),
    state             text        NOT NULL CHECK (state IN ('PENDING', 'AWAITING_APPROVAL', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING',
                                                            'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
    certificate_id    text        NOT NULL,
    target_id         text        NOT NULL DEFAULT '',
    retry_of          text        NOT NULL DEFAULT '',
    attempt           integer     NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts      integer     NOT NULL CHECK (max_attempts BETWEEN 1 AND 100),
    error_reason      text        NOT NULL DEFAULT '',
    error_message     text        NOT NULL DEFAULT '',
    requested_by      text        NOT NULL,
    -- All who have asked for this work: none of them may approve it.
    askers            text[]      NOT NULL,
    approved_by       text        NOT NULL DEFAULT '',
    -- What was put before the approver; an approval of something else is void.
    approval_subject  text        NOT NULL DEFAULT '',
    approval_comment  text        NOT NULL DEFAULT '',
    create_time       timestamptz NOT NULL,
    start_time        timestamptz,
    end_time          timestamptz,
    deadline_time     timestamptz,
    revision          integer     NOT NULL DEFAULT 1,
    due_time          timestamptz,
    attempts          integer     NOT NULL DEFAULT 0,
    lease_id          uuid,
    lease_until       timestamptz,
    CHECK ((type = 'DEPLOY') = (target_id <> '')),
    CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')) = (end_time IS NOT NULL)),
    CHECK ((end_time IS NULL) = (due_time IS NOT NULL)),
    CHECK (end_time IS NOT NULL OR deadline_time IS NOT NULL),
    CHECK (end_time IS NULL OR lease_id IS NULL),
    CHECK (approved_by = '' OR NOT approved_by = ANY (askers))
);
-- At most one open ISSUE or RENEW job for a certificate, and one open DEPLOY job for each of its targets.
CREATE UNIQUE INDEX jobs_one_open ON jobs (certificate_id) WHERE type IN ('ISSUE', 'RENEW') AND end_time IS NULL;
CREATE UNIQUE INDEX jobs_one_open_deploy ON jobs (certificate_id, target_id) WHERE type = 'DEPLOY' AND end_time IS NULL;
CREATE INDEX jobs_due ON jobs (due_time, id) WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING');
CREATE INDEX jobs_deadline ON jobs (deadline_time, id) WHERE end_time IS NULL;
CREATE INDEX jobs_deadline_order ON jobs ((COALESCE(deadline_time, 'infinity'::timestamptz)), id);
CREATE INDEX jobs_create_time ON jobs (create_time, id);
CREATE INDEX jobs_certificate ON jobs (certificate_id, create_time, id);
CREATE INDEX jobs_target ON jobs (target_id, create_time, id) WHERE target_id <> '';
CREATE INDEX jobs_state ON jobs (state, create_time, id);
CREATE INDEX jobs_type ON jobs (type, create_time, id);

-- One row for each key that a job has made. Ids of tasks and orders are stored before anybody is called.
CREATE TABLE job_keys (
    job_id         text    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    agent_id       text    NOT NULL,
    state          text    NOT NULL CHECK (state IN ('AWAITING_CSR', 'AWAITING_CA', 'ISSUED', 'DONE', 'FAILED')),
    task_id        uuid,
    csr_pem        text    NOT NULL DEFAULT '',
    order_id       text,
    version        integer NOT NULL DEFAULT 0,
    error_reason   text    NOT NULL DEFAULT '',
    error_message  text    NOT NULL DEFAULT '',
    permanent      boolean NOT NULL DEFAULT false,
    keep_csr       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (job_id, agent_id),
    CHECK (state NOT IN ('AWAITING_CA', 'ISSUED') OR (order_id IS NOT NULL AND csr_pem <> '')),
    CHECK ((state = 'FAILED') = (error_reason <> ''))
);
CREATE UNIQUE INDEX job_keys_task ON job_keys (task_id) WHERE task_id IS NOT NULL;
CREATE UNIQUE INDEX job_keys_order ON job_keys (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX job_keys_agent ON job_keys (agent_id, job_id) WHERE agent_id <> '';

-- Tasks that inventory must take back, because their job has ended without them.
CREATE TABLE task_cancellations (
    id          uuid        PRIMARY KEY,
    job_id      text        NOT NULL,
    due_time    timestamptz NOT NULL,
    attempts    integer     NOT NULL DEFAULT 0,
    lease_id    uuid,
    lease_until timestamptz
);
CREATE INDEX task_cancellations_due ON task_cancellations (due_time, id);

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

-- +goose Down
DROP TABLE inbox, outbox_leases, outbox, collection_revisions, idempotency_keys, task_cancellations, job_keys, jobs, plan_keys, plans, policies;

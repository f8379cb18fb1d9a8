-- +goose Up

-- How long an order of the issuer may be pending; 0: as its connector says.
ALTER TABLE issuers ADD COLUMN pending_deadline_seconds bigint NOT NULL DEFAULT 0 CHECK (pending_deadline_seconds >= 0);
-- Up to when the CA's own list of orders has been compared with the journal.
ALTER TABLE issuers ADD COLUMN sweep_time timestamptz;
-- Until when one replica compares it.
ALTER TABLE issuers ADD COLUMN sweep_until timestamptz;

-- account is a hash: two issuers on one CA account have the same. ca_key is how the CA's list calls the order.
ALTER TABLE orders
    ADD COLUMN account           text NOT NULL DEFAULT '',
    ADD COLUMN ca_key            text NOT NULL DEFAULT '',
    -- The order that this one renews at the CA.
    ADD COLUMN previous_order_id text NOT NULL DEFAULT '';
CREATE INDEX orders_ca_key ON orders (account, ca_key) WHERE ca_key <> '';
CREATE INDEX orders_issuer_ca_key ON orders (issuer_id, ca_key) WHERE ca_key <> '';
-- Claims go from issuer to issuer, so that the many due rows of one are never in front of another's.
CREATE INDEX orders_issuer_due ON orders (issuer_id, due_time, id) WHERE due_time IS NOT NULL;
CREATE INDEX orders_renewable ON orders (certificate_id, issuer_id, agent_id, issue_time) WHERE status = 'ISSUED';
DROP INDEX orders_issuer_open; -- orders_issuer_due serves the same

ALTER TABLE revocations DROP CONSTRAINT revocations_status_check;
ALTER TABLE revocations DROP CONSTRAINT revocations_due;
ALTER TABLE revocations
    -- How the CA calls the request for approval.
    ADD COLUMN ca_request jsonb NOT NULL DEFAULT '{}',
    ADD CONSTRAINT revocations_status_check CHECK (status IN ('PENDING', 'AWAITING_APPROVAL', 'DONE', 'FAILED', 'UNSUPPORTED')),
    ADD CONSTRAINT revocations_due CHECK ((status IN ('PENDING', 'AWAITING_APPROVAL')) = (due_time IS NOT NULL));
CREATE INDEX revocations_issuer_due ON revocations (issuer_id, due_time, id) WHERE due_time IS NOT NULL;

-- Orders that the CA has and the journal does not know, found by comparing the CA's list with it.
CREATE TABLE orphans (
    id            text        PRIMARY KEY,
    issuer_id     text        NOT NULL REFERENCES issuers ON DELETE CASCADE,
    account       text        NOT NULL,
    ca_key        text        NOT NULL,
    ca_reference  jsonb       NOT NULL,
    -- The order of the journal that the CA says it was placed for; empty: it does not say.
    order_id      text        NOT NULL DEFAULT '',
    ca_state      text        NOT NULL CHECK (ca_state IN ('PENDING', 'ISSUED', 'REJECTED')),
    common_name   text        NOT NULL DEFAULT '',
    dns_names     text[]      NOT NULL,
    serial_number text        NOT NULL DEFAULT '',
    reason        text        NOT NULL,
    message       text        NOT NULL,
    placed_time   timestamptz,
    create_time   timestamptz NOT NULL,
    -- SEEN: it may be on its way into the journal; OPEN waits for a human; GONE: the journal accounts for it by now.
    status        text        NOT NULL CHECK (status IN ('SEEN', 'OPEN', 'ADOPTED', 'DISMISSED', 'GONE')),
    revision      integer     NOT NULL DEFAULT 1,
    UNIQUE (account, ca_key)
);
CREATE INDEX orphans_create_time ON orphans (create_time, id) WHERE status = 'OPEN';
CREATE INDEX orphans_issuer ON orphans (issuer_id, create_time, id) WHERE status = 'OPEN';

-- +goose Up
-- One row per order that is pending at its CA.
CREATE TABLE polls (
    order_id      text        PRIMARY KEY CHECK (order_id <> ''),
    issuer_id     text        NOT NULL CHECK (issuer_id <> ''),
    state         text        NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'LEASED', 'DONE', 'ABANDONED')),
    -- As the connector gave it; empty when it gave none.
    ca_reference  text        NOT NULL DEFAULT '',
    due_time      timestamptz NOT NULL,
    deadline_time timestamptz NOT NULL,
    -- When the watch began that the wait budget counts from: the same as create_time, until issuance asks for another one.
    watch_time    timestamptz NOT NULL,
    create_time   timestamptz NOT NULL,
    end_time      timestamptz,
    attempts      integer     NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    lease_id      uuid,
    lease_until   timestamptz,
    last_answer   text        NOT NULL DEFAULT '' CHECK (length(last_answer) <= 1001),
    CHECK ((state = 'LEASED') = (lease_id IS NOT NULL)),
    CHECK ((lease_id IS NULL) = (lease_until IS NULL)),
    CHECK ((state IN ('DONE', 'ABANDONED')) = (end_time IS NOT NULL))
);
CREATE INDEX polls_due ON polls (due_time, order_id) WHERE state IN ('WAITING', 'LEASED');
-- Claims go from issuer to issuer, so that the many due rows of one are never in front of another's.
CREATE INDEX polls_issuer_due ON polls (issuer_id, due_time, order_id) WHERE state IN ('WAITING', 'LEASED');
CREATE INDEX polls_end_time ON polls (end_time) WHERE end_time IS NOT NULL;

CREATE TABLE inbox (
    event_id    uuid        PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_create_time ON inbox (create_time);

-- +goose Down
DROP TABLE inbox, polls;

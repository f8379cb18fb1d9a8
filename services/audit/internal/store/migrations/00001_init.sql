-- +goose Up
CREATE TABLE events (
    sequence      bigint      PRIMARY KEY CHECK (sequence > 0),
    id            text        NOT NULL UNIQUE,
    time          timestamptz NOT NULL,
    record_time   timestamptz NOT NULL,
    actor_type    text        NOT NULL,
    actor_id      text        NOT NULL,
    action        text        NOT NULL,
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    outcome       text        NOT NULL CHECK (outcome IN ('SUCCESS', 'FAILURE', 'DENIED')),
    request_id    text        NOT NULL,
    -- json, not jsonb: the bytes are part of the hash and must come back as they went in.
    data          json        NOT NULL,
    hash          bytea       NOT NULL CHECK (length(hash) = 32),
    previous_hash bytea       NOT NULL CHECK (length(previous_hash) = 32)
);
CREATE INDEX events_time ON events (time, sequence);
CREATE INDEX events_actor ON events (actor_id, sequence);
CREATE INDEX events_actor_type ON events (actor_type, sequence);
CREATE INDEX events_action ON events (action text_pattern_ops, sequence);
CREATE INDEX events_resource ON events (resource_id, resource_type, sequence);
CREATE INDEX events_resource_type ON events (resource_type, sequence);
CREATE INDEX events_outcome ON events (outcome, sequence) WHERE outcome <> 'SUCCESS';
CREATE INDEX events_request ON events (request_id, sequence) WHERE request_id <> '';

-- The end of the chain. Its MAC is made with a key that is not in the database, so that a cut-off end is seen.
CREATE TABLE head (
    singleton boolean    PRIMARY KEY DEFAULT true CHECK (singleton),
    sequence bigint      NOT NULL,
    hash     bytea       NOT NULL,
    time     timestamptz NOT NULL,
    mac      bytea       NOT NULL
);

-- Places that were verified, each with a MAC: a chain that was computed anew does not fit them.
CREATE TABLE checkpoints (
    sequence bigint      PRIMARY KEY,
    hash     bytea       NOT NULL,
    time     timestamptz NOT NULL,
    mac      bytea       NOT NULL
);

CREATE TABLE collection_revisions (
    collection text     NOT NULL,
    shard      smallint NOT NULL,
    revision   bigint   NOT NULL,
    PRIMARY KEY (collection, shard)
);

-- +goose Down
DROP TABLE collection_revisions, checkpoints, head, events;

-- +goose Up
-- Somebody asked for a poll at once: it is claimed whatever is known of the CA.
ALTER TABLE polls ADD COLUMN hastened boolean NOT NULL DEFAULT false;
-- Since when the CA has refused to answer for the order.
ALTER TABLE polls ADD COLUMN refused_time timestamptz;
CREATE INDEX polls_hastened ON polls (issuer_id, due_time, order_id) WHERE hastened AND end_time IS NULL;
-- A claim is for one issuer after the other. With another condition than polls_due, which fits the claim's order too: that index
-- would lead it past all rows of an issuer with many that are due to get at those of the others.
DROP INDEX polls_issuer_due;
CREATE INDEX polls_issuer_due ON polls (issuer_id, due_time, order_id) WHERE end_time IS NULL;
-- For the census: what is pending at an issuer, since when and until when, from the index alone.
CREATE INDEX polls_pending ON polls (issuer_id, create_time, deadline_time) WHERE state IN ('WAITING', 'LEASED');
-- Each poll writes its row twice, and a claim reads from the end of the index where the old versions lie.
ALTER TABLE polls SET (autovacuum_vacuum_scale_factor = 0.05);

-- The last 20 answers of each order: a ring, whose slot is the attempt modulo 20. An order that is asked for days overwrites its
-- own rows, no indexed column changes, and the free space of the page takes the new version, so that nothing grows.
CREATE TABLE poll_answers (
    order_id    text        NOT NULL REFERENCES polls (order_id) ON DELETE CASCADE,
    slot        smallint    NOT NULL CHECK (slot BETWEEN 0 AND 19),
    attempt     integer     NOT NULL CHECK (attempt >= 0),
    poll_time   timestamptz NOT NULL,
    duration_ms integer     NOT NULL CHECK (duration_ms >= 0),
    result      text        NOT NULL CHECK (result IN ('PENDING', 'ISSUED', 'REJECTED', 'FAILED', 'ERROR')),
    reason      text        NOT NULL CHECK (length(reason) <= 101),
    message     text        NOT NULL CHECK (length(message) <= 201),
    next_time   timestamptz,
    PRIMARY KEY (order_id, slot)
) WITH (fillfactor = 80);

-- +goose Down
DROP TABLE poll_answers;
ALTER TABLE polls RESET (autovacuum_vacuum_scale_factor);
DROP INDEX polls_pending, polls_hastened, polls_issuer_due;
CREATE INDEX polls_issuer_due ON polls (issuer_id, due_time, order_id) WHERE state IN ('WAITING', 'LEASED');
ALTER TABLE polls DROP COLUMN refused_time, DROP COLUMN hastened;

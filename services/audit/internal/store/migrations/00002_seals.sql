-- +goose Up

-- While the internal secret is being replaced there are several: an anchor has a MAC for each, with the id of the secret that
-- it was made with. Column mac stays: the version before reads no other.
ALTER TABLE head
    ADD COLUMN key_ids bytea[] NOT NULL DEFAULT '{}',
    ADD COLUMN macs    bytea[] NOT NULL DEFAULT '{}';

-- The service may add MACs to a checkpoint, and change none.
CREATE TABLE checkpoint_seals (
    sequence bigint NOT NULL,
    key_id   bytea  NOT NULL,
    mac      bytea  NOT NULL,
    PRIMARY KEY (sequence, key_id)
);

-- +goose Down
DROP TABLE checkpoint_seals;
ALTER TABLE head DROP COLUMN macs, DROP COLUMN key_ids;

-- +goose Up

-- The entries of an issuer's CRLs as they are encoded, in parts of up to half a megabyte that all of its CRLs share: the next CRL costs
-- what is new, and not what was revoked before. Parts only grow, until a new generation of them leaves out what has ended.
CREATE TABLE crl_parts (
    issuer_id  text        NOT NULL REFERENCES issuers ON DELETE CASCADE,
    generation bigint      NOT NULL CHECK (generation > 0),
    part       integer     NOT NULL CHECK (part > 0),
    begin_time timestamptz NOT NULL, -- of the generation
    -- All entries of the generation up to the end of this part, and the bytes that they take.
    entries    integer     NOT NULL,
    size       bigint      NOT NULL,
    der        bytea       NOT NULL,
    PRIMARY KEY (issuer_id, generation, part)
);
-- Serial numbers are random: to compress them is work for nothing.
ALTER TABLE crl_parts ALTER COLUMN der SET STORAGE EXTERNAL;

-- A CRL is its der, then the first size bytes of the parts of its generation, then its tail. CRLs that were made before there were
-- parts have generation 0 and are in der as a whole.
ALTER TABLE crls
    ADD COLUMN generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN size       bigint NOT NULL DEFAULT 0,
    ADD COLUMN tail       bytea  NOT NULL DEFAULT '';


DROP INDEX revocations_crl; -- what is listed already is read by serial number

-- +goose Up
CREATE TABLE jobs (
    id          text        PRIMARY KEY,
    state       text        NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'LEASED', 'DONE', 'DEAD')),
    due_time    timestamptz NOT NULL DEFAULT now(),
    attempts    integer     NOT NULL DEFAULT 0,
    lease_id    uuid,
    lease_until timestamptz,
    worked      integer     NOT NULL DEFAULT 0,
    owner       text        NOT NULL DEFAULT ''
);
CREATE INDEX jobs_owner_due ON jobs (owner, due_time, id) WHERE state IN ('WAITING', 'LEASED');
CREATE INDEX jobs_due ON jobs (due_time, id) WHERE state IN ('WAITING', 'LEASED');

CREATE TABLE plain (
    id          bigserial   PRIMARY KEY,
    due_time    timestamptz NOT NULL DEFAULT now(),
    attempts    integer     NOT NULL DEFAULT 0,
    lease_id    uuid,
    lease_until timestamptz
);

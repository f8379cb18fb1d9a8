-- +goose Up

-- What is wanted: a hash over names, issuer, profile and key algorithm; empty until inventory has told. Who wished it, until
-- it is issued: they cannot approve it. Why it is issued without waiting for the renewal's time; empty: it is not.
ALTER TABLE plans ADD COLUMN subject text NOT NULL DEFAULT '', ADD COLUMN subject_by text NOT NULL DEFAULT '', ADD COLUMN reissue text NOT NULL DEFAULT '';

-- certctl.issuance.v1.SubmitOrderRequest without its CSR: what the order is placed for, also when the certificate has
-- changed since.
ALTER TABLE job_keys ADD COLUMN order_request bytea;

-- Plans of certificates that are over are never computed again, and would be in the way.
DROP INDEX plans_policy;
CREATE INDEX plans_policy ON plans (policy_id, policy_revision, id) WHERE state <> 'ENDED';
CREATE INDEX plans_working ON plans (id) WHERE state = 'WORKING';
-- For counts by state: equal keys are stored once, so that it is a fraction of the table.
CREATE INDEX jobs_count ON jobs (state);

-- +goose Down
DROP INDEX jobs_count;
DROP INDEX plans_working;
DROP INDEX plans_policy;
CREATE INDEX plans_policy ON plans (policy_id, policy_revision, id);
ALTER TABLE job_keys DROP COLUMN order_request;
ALTER TABLE plans DROP COLUMN reissue, DROP COLUMN subject_by, DROP COLUMN subject;

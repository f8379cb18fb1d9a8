-- +goose Up

-- AWAITING_APPROVAL: a human at the CA has to approve; FAILED: the CA refused, or has no revocation.
ALTER TABLE certificate_versions DROP CONSTRAINT certificate_versions_revocation_state_check;
ALTER TABLE certificate_versions
    ADD CONSTRAINT certificate_versions_revocation_state_check CHECK (revocation_state IN ('', 'PENDING', 'AWAITING_APPROVAL', 'FAILED', 'DONE')),
    ADD COLUMN revocation_error text NOT NULL DEFAULT '';

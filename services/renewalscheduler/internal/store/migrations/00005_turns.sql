-- +goose NO TRANSACTION
-- +goose Up

-- Open jobs by who has asked for them: those who ask take turns at the slots. The second condition holds for all of them (see 00003).
-- Concurrently, since the version before goes on meanwhile; what a run that was ended has left is made anew.
DROP INDEX CONCURRENTLY IF EXISTS jobs_requester_due;
CREATE INDEX CONCURRENTLY jobs_requester_due ON jobs (requested_by, due_time, id)
 WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING') AND due_time IS NOT NULL;

-- All of them by their time. Its second condition keeps it from serving what asks for those of one requester (see 00003); the version
-- before does not make it, and sorts what is due.
DROP INDEX CONCURRENTLY IF EXISTS jobs_all_due;
CREATE INDEX CONCURRENTLY jobs_all_due ON jobs (due_time, id)
 WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING') AND due_time > '-infinity';
DROP INDEX CONCURRENTLY IF EXISTS jobs_due;

-- +goose Down
CREATE INDEX CONCURRENTLY jobs_due ON jobs (due_time, id) WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING');
DROP INDEX CONCURRENTLY jobs_all_due;
DROP INDEX CONCURRENTLY jobs_requester_due;

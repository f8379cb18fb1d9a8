-- +goose Up

-- Open work by agent, deadline and certificate. The second condition of each holds for all work; it keeps an index from serving what asks for
-- open work by something else: while much opens at once, what Postgres knows of the table says that there is none, and it would read all
-- of it each time.
DROP INDEX assignments_mailbox;
CREATE INDEX assignments_mailbox ON assignments (agent_id, mailbox) WHERE status IN ('OPEN', 'LEASED') AND agent_id IS NOT NULL;
DROP INDEX assignments_deadline;
CREATE INDEX assignments_deadline ON assignments (deadline_time) WHERE status IN ('OPEN', 'LEASED') AND deadline_time IS NOT NULL;
DROP INDEX assignments_certificate;
CREATE INDEX assignments_certificate ON assignments (certificate_id) WHERE status IN ('OPEN', 'LEASED') AND certificate_id IS NOT NULL;

-- +goose Down
DROP INDEX assignments_certificate;
CREATE INDEX assignments_certificate ON assignments (certificate_id) WHERE status IN ('OPEN', 'LEASED');
DROP INDEX assignments_deadline;
CREATE INDEX assignments_deadline ON assignments (deadline_time) WHERE status IN ('OPEN', 'LEASED');
DROP INDEX assignments_mailbox;
CREATE INDEX assignments_mailbox ON assignments (agent_id, mailbox) WHERE status IN ('OPEN', 'LEASED');

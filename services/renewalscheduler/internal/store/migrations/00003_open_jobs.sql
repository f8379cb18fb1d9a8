-- +goose Up

-- Open jobs by their deadline. The second condition holds for all of them; it keeps this index from serving what asks for open jobs by
-- something else: while many open at once, what Postgres knows of the table says that there are none, and it would read them all each time.
DROP INDEX jobs_deadline;
CREATE INDEX jobs_deadline ON jobs (deadline_time, id) WHERE end_time IS NULL AND deadline_time IS NOT NULL;

-- +goose Down
DROP INDEX jobs_deadline;
CREATE INDEX jobs_deadline ON jobs (deadline_time, id) WHERE end_time IS NULL;

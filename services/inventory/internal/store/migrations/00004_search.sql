-- +goose Up

-- Certificates of a status lie together in the orders by the end and by the last change: to find a page of them by these orders' own
-- indexes would mean to walk through all the others. not_after is in the index so that counts need nothing else.
CREATE INDEX certificates_by_status_end ON certificates (status, (COALESCE(not_after, 'infinity'::timestamptz)), id) INCLUDE (not_after);
CREATE INDEX certificates_by_status_change ON certificates (status, update_time, id);
-- The first serves what this one did.
DROP INDEX certificates_active_end;

-- +goose Down
CREATE INDEX certificates_active_end ON certificates (not_after) WHERE status = 'ACTIVE';
DROP INDEX certificates_by_status_change, certificates_by_status_end;

-- +goose NO TRANSACTION
-- +goose Up

-- The status and the end are asked for with everything else, and what has them often lies far away in an order or is few among what an
-- owner has. With both in the indexes, into which each change of a certificate is written anyway (it changes update_time), a search reads
-- these alone.
--
-- Concurrently, since the version before goes on meanwhile, and each before the one that it stands for is dropped, so that no read is
-- without. What a run that was ended has left is made anew by the next: an index that did not become valid has the name _new.

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_owner_new;
CREATE INDEX CONCURRENTLY certificates_by_owner_new ON certificates (owner, create_time, id) INCLUDE (status, not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_owner;
ALTER INDEX certificates_by_owner_new RENAME TO certificates_by_owner;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_team_new;
CREATE INDEX CONCURRENTLY certificates_by_team_new ON certificates (team, create_time, id) INCLUDE (status, not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_team;
ALTER INDEX certificates_by_team_new RENAME TO certificates_by_team;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_environment_new;
CREATE INDEX CONCURRENTLY certificates_by_environment_new ON certificates (environment, create_time, id) INCLUDE (status, not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_environment;
ALTER INDEX certificates_by_environment_new RENAME TO certificates_by_environment;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_create_time_new;
CREATE INDEX CONCURRENTLY certificates_by_create_time_new ON certificates (create_time, id) INCLUDE (not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_create_time;
ALTER INDEX certificates_by_create_time_new RENAME TO certificates_by_create_time;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_update_time_new;
CREATE INDEX CONCURRENTLY certificates_by_update_time_new ON certificates (update_time, id) INCLUDE (not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_update_time;
ALTER INDEX certificates_by_update_time_new RENAME TO certificates_by_update_time;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_name_new;
CREATE INDEX CONCURRENTLY certificates_by_name_new ON certificates (name, id) INCLUDE (not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_name;
ALTER INDEX certificates_by_name_new RENAME TO certificates_by_name;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_status_new;
CREATE INDEX CONCURRENTLY certificates_by_status_new ON certificates (status, create_time, id) INCLUDE (not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_status;
ALTER INDEX certificates_by_status_new RENAME TO certificates_by_status;

DROP INDEX CONCURRENTLY IF EXISTS certificates_by_status_change_new;
CREATE INDEX CONCURRENTLY certificates_by_status_change_new ON certificates (status, update_time, id) INCLUDE (not_after);
DROP INDEX CONCURRENTLY IF EXISTS certificates_by_status_change;
ALTER INDEX certificates_by_status_change_new RENAME TO certificates_by_status_change;

-- What was found and has a status lies together in the order by the end, as certificates do.
DROP INDEX CONCURRENTLY IF EXISTS discovered_certificates_by_status_end;
CREATE INDEX CONCURRENTLY discovered_certificates_by_status_end ON discovered_certificates (status, not_after, id);

-- +goose Down
DROP INDEX discovered_certificates_by_status_end;
DROP INDEX certificates_by_status_change;
CREATE INDEX certificates_by_status_change ON certificates (status, update_time, id);
DROP INDEX certificates_by_status;
CREATE INDEX certificates_by_status ON certificates (status, create_time, id);
DROP INDEX certificates_by_name;
CREATE INDEX certificates_by_name ON certificates (name, id);
DROP INDEX certificates_by_update_time;
CREATE INDEX certificates_by_update_time ON certificates (update_time, id);
DROP INDEX certificates_by_create_time;
CREATE INDEX certificates_by_create_time ON certificates (create_time, id);
DROP INDEX certificates_by_environment;
CREATE INDEX certificates_by_environment ON certificates (environment, create_time, id);
DROP INDEX certificates_by_team;
CREATE INDEX certificates_by_team ON certificates (team, create_time, id);
DROP INDEX certificates_by_owner;
CREATE INDEX certificates_by_owner ON certificates (owner, create_time, id);

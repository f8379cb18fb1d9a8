-- +goose Up

-- Room on the pages for the next versions of rows that are changed several times soon after each other. A change of what no index has, as
-- a claim or a key's state, then stays on its page and costs the indexes nothing (HOT). It holds for pages that are written from now on.
ALTER TABLE jobs SET (fillfactor = 80);
ALTER TABLE job_keys SET (fillfactor = 70);
ALTER TABLE plans SET (fillfactor = 80);
ALTER TABLE plan_keys SET (fillfactor = 80);

-- +goose Down
ALTER TABLE plan_keys RESET (fillfactor);
ALTER TABLE plans RESET (fillfactor);
ALTER TABLE job_keys RESET (fillfactor);
ALTER TABLE jobs RESET (fillfactor);

-- +goose Up

-- The longest validity that the issuer's own certificate would allow, as its connector said when it was built last; 0: no
-- bound is known. It is stored so that every replica shows the same.
ALTER TABLE issuers ADD COLUMN max_validity_seconds bigint NOT NULL DEFAULT 0 CHECK (max_validity_seconds >= 0);

-- The hourly question how long the longest profile is, which decides when a local CA is renewed.
CREATE INDEX profiles_max_validity ON profiles (max_validity_seconds);

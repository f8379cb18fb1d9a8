-- +goose Up

-- For counts by status: equal keys are stored once, so that these are a fraction of the tables and of the wider indexes.
CREATE INDEX certificates_status ON certificates (status);
CREATE INDEX deployments_status ON deployments (status);

-- +goose Down
DROP INDEX deployments_status, certificates_status;

-- +goose Up

-- Between which times the events of a span of the record happened: where it is read in the order of its numbers, spans are left out that
-- have nothing of a time. Those after the last row are not known yet. What is here never changes, as events do not.
CREATE TABLE spans (
    first    bigint      PRIMARY KEY,
    last     bigint      NOT NULL,
    earliest timestamptz NOT NULL,
    latest   timestamptz NOT NULL
);
INSERT INTO spans (first, last, earliest, latest)
SELECT n, n + 1999, COALESCE(t.earliest, '-infinity'), COALESCE(t.latest, 'infinity')
FROM generate_series(1, (SELECT max(sequence) FROM events) - 1999, 2000) n
 CROSS JOIN LATERAL (SELECT min(o.time) AS earliest, max(o.time) AS latest
  FROM (SELECT e.time FROM events e WHERE e.sequence BETWEEN n AND n + 1999 OFFSET 0) o) t;

-- +goose Down
DROP TABLE spans;

// Package embeddedpg runs the private Postgres of `certctl serve`: found on the host or fetched, initialised once, reachable
// through a Unix socket in the data directory and through no port, and ended with certctl.
//
// In the data directory it keeps postgres/ (owned by the account that Postgres runs as), postgres.log, postgres.lock, and, if
// the binaries were fetched, postgres-<version>/.
package embeddedpg

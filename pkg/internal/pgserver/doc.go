// Package pgserver runs a Postgres server as a child process: it finds the binaries and an unprivileged account,
// makes a data directory, and starts and stops the server. What the server is for is left to embeddedpg and testpg.
package pgserver

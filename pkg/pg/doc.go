// Package pg is how every service meets Postgres: one schema and one login role per service on one shared
// server, a share of one sum of connections, and errors that say what to do.
//
// Migrate makes the schemas, the roles and their rights. Open connects as one service's role. Tx runs a
// transaction again when Postgres asks for that, Listen keeps one connection for NOTIFY, and Diagnose explains
// the failures that an operator can mend.
package pg

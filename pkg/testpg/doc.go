// Package testpg gives tests a real Postgres. A test without Postgres fails; it never skips.
//
// New makes a database of its own for a test, migrated, and opened with the role and the rights of production. All tests of a process
// share one throw-away server, which starts in a fraction of a second from a cached data directory, writes nothing
// through to the disk, and is gone when the process is, however that ends. NewServer makes a private server for tests that stop it.
//
// Roles belong to a whole server, so databases of parallel tests share certctl_<service>; those have no CONNECTION LIMIT here. A test
// of limits uses NewServer.
package testpg

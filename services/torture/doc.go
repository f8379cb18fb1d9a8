// Package torture is the proof that no certificate is bought twice and none is lost: it has no code of the product, only
// tests. They run issuance and asyncpoller, wired as in production, on a real Postgres against the CA simulator, let the
// CA, the network, the database and the processes fail by random scripts and at every labelled point, and then compare what
// the CAs sold with what the journal says.
//
// A random script follows from its seed. `make torture SEEDS=20000` runs more of them than `make test` does, and
// `make torture SEED=4711 SEEDS=1` one again that failed.
package torture

package pg

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	// DefaultMaxConns is the sum of all connections of an installation (CERTCTL_DATABASE_MAX_CONNS).
	DefaultMaxConns = 50

	// DefaultQuotas shares DefaultMaxConns out (CERTCTL_DATABASE_POOL_QUOTAS).
	DefaultQuotas = "inventory=16,issuance=12,renewalscheduler=12,asyncpoller=6,audit=4"

	// minShare is the least that a replica can work with: one pooled connection and one for LISTEN.
	minShare = 2
)

// Quotas are the connections of each service, over all its replicas, LISTEN connections included.
type Quotas map[string]int

// ParseQuotas reads "inventory=16,issuance=12,…". Every service of DefaultQuotas is named once, nothing else is, each has
// at least 2, and the sum is maxConns.
func ParseQuotas(text string, maxConns int) (Quotas, error) {
	quotas, err := readQuotas(text)
	if err != nil {
		return nil, err
	}
	if err := quotas.checkNames(); err != nil {
		return nil, err
	}
	if sum := quotas.Sum(); sum != maxConns {
		return nil, fmt.Errorf("the connection quotas add up to %d, but CERTCTL_DATABASE_MAX_CONNS is %d: "+
			"change CERTCTL_DATABASE_POOL_QUOTAS (%s) or CERTCTL_DATABASE_MAX_CONNS so that both are the same", sum, maxConns, quotas)
	}
	return quotas, nil
}

func readQuotas(text string) (Quotas, error) {
	quotas := Quotas{}
	for part := range strings.SplitSeq(text, ",") {
		name, number, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return nil, fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: %q is not service=number", part)
		}
		if _, twice := quotas[name]; twice {
			return nil, fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: %s is named twice", name)
		}
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil || n < minShare {
			return nil, fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: %s=%s: want a number, at least %d", name, number, minShare)
		}
		quotas[name] = n
	}
	return quotas, nil
}

func (q Quotas) checkNames() error {
	known, err := readQuotas(DefaultQuotas)
	if err != nil {
		return err
	}
	for _, name := range known.names() {
		if _, ok := q[name]; !ok {
			return fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: %s is missing (want all of %s)", name, strings.Join(known.names(), ", "))
		}
	}
	for _, name := range q.names() {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("CERTCTL_DATABASE_POOL_QUOTAS: there is no service %q (want %s)", name, strings.Join(known.names(), ", "))
		}
	}
	return nil
}

// Sum adds the quotas up.
func (q Quotas) Sum() int {
	sum := 0
	for _, n := range q {
		sum += n
	}
	return sum
}

// String writes the quotas as they are read, in the order of the names.
func (q Quotas) String() string {
	parts := make([]string, 0, len(q))
	for _, name := range q.names() {
		parts = append(parts, fmt.Sprintf("%s=%d", name, q[name]))
	}
	return strings.Join(parts, ",")
}

func (q Quotas) names() []string { return slices.Sorted(maps.Keys(q)) }

// Share is what one of several processes of a service takes of its quota, at least 2: a part for each, and one for the next that
// starts, in a rolling update before an old one ends. With more processes than half the quota the shares exceed it; Postgres then refuses
// the last connections (SQLSTATE 53300), and Diagnose says why.
func Share(quota, processes int) int {
	return max(quota/(max(processes, 1)+1), minShare)
}

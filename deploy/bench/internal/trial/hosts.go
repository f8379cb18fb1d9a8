package trial

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/deploy/bench/internal/site"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Hosts is the argument that makes the program run agents; see RunHosts.
const Hosts = "hosts"

// agentsName is what the process with the agents of a storm is called among those that are measured.
const agentsName = "agents"

// stormFleet are real agents that run in a process of their own: they are no part of the load, and the load does not wait for them.
type stormFleet struct {
	bench             *bench
	name, prefix, dir string
	ids               []string
}

func (f *stormFleet) stop() {
	_ = f.bench.site.End(f.name) // or it has ended with the rest
	_ = os.RemoveAll(f.dir)      // what is left would be in the way of nothing
}

// RunHosts runs agents until ctx ends: their directory, the CA of their server, the prefix of their names, how many, and the gateways that they
// connect to in turn, with commas.
func RunHosts(ctx context.Context, args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("%s: got %d arguments instead of 5", Hosts, len(args))
	}
	n, err := strconv.Atoi(args[3])
	if err != nil {
		return fmt.Errorf("%s: number of agents: %w", Hosts, err)
	}
	gateways := strings.Split(args[4], ",")
	var agents errgroup.Group
	for i := range n {
		name := fmt.Sprintf("%s-%03d", args[2], i)
		agents.Go(func() error {
			return agent.Run(ctx, agent.Config{Server: "https://" + gateways[i%len(gateways)], ServerCA: args[1], Name: name,
				DataDir: filepath.Join(args[0], name), JoinToken: secretbox.NewSecret(site.JoinToken)}, agent.Deps{Log: zap.NewNop()})
		})
	}
	return agents.Wait()
}

// hosts is where the agents keep their files: in memory, where the system has such a place. A fleet's hosts have disks of their own; together
// on the one that Postgres writes to they would wait for it as no host does.
func (b *bench) hosts(prefix string) string {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		return filepath.Join(memory, "certctl-"+prefix)
	}
	return filepath.Join(b.Dir, prefix)
}

// sites is the directory in which agents deploy files.
const sites = "sites"

// enrol starts agents in a process of a name that connect to the gateways in turn, and waits until all are online.
func (b *bench) enrol(ctx context.Context, name, prefix string, n int, gateways []string) (*stormFleet, error) {
	f := &stormFleet{bench: b, name: name, prefix: prefix, dir: b.hosts(prefix)}
	if err := os.MkdirAll(filepath.Join(f.dir, sites), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of sites: %w", err)
	}
	err := b.site.Beside(ctx, name, Hosts, f.dir, filepath.Join(b.site.Dir(), "ca.crt"), prefix, strconv.Itoa(n), strings.Join(gateways, ","))
	if err != nil {
		return nil, err
	}
	err = b.until(ctx, "all agents to be online", func() (ok bool, err error) {
		f.ids, err = b.ids(ctx, fmt.Sprintf("SELECT id FROM inventory.agents WHERE status = 'ONLINE' AND name LIKE '%s-%%' ORDER BY name", prefix))
		return len(f.ids) == n, err
	})
	if err != nil {
		f.stop()
		return nil, err
	}
	return f, nil
}

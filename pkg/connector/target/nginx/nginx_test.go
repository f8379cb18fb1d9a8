package nginx_test

import (
	"testing"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/target/nginx"
	"github.com/certctl/certctl/pkg/connector/targettest"
)

func TestMain(m *testing.M) { targettest.Main(m) }

func TestNginxPassesTheSuite(t *testing.T) {
	t.Parallel()
	targettest.Run(t, func(t *testing.T) targettest.Fixture {
		n := targettest.NewNginx(t)
		ca := targettest.NewAuthority(t)
		n.Put(t, ca.Issue(t, targettest.Name))
		n.Start(t)
		e := target.Endpoint{Address: n.Address}
		return targettest.Fixture{
			Type: nginx.Type, Config: n.Config(), Endpoint: e, Fullchain: n.Fullchain, Key: n.Key,
			Steps: targettest.Steps(2), Reloads: n.Reloads, Reload: n.Reload,
			Put: func(t testing.TB, m target.Material) {
				n.Put(t, m)
				n.Restart(t)
			},
		}
	})
}

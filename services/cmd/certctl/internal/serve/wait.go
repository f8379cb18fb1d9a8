package serve

import (
	"time"

	"github.com/certctl/certctl/pkg/asyncpoll"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuer/sectigo"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// setDefaultMaxWait gives the process the wait budget of CAs that have none of their own. Unset is the package's.
func setDefaultMaxWait(w settings.Waits) { asyncpoll.SetDefaultMaxWait(seconds(w.Default)) }

// waitBudgets are those of CAs that have one of their own, by issuer type.
func waitBudgets(w settings.Waits) asyncpoll.Budgets {
	return asyncpoll.Budgets{
		digicert.TypeName: seconds(w.DigiCert), entrustgateway.TypeName: seconds(w.Entrust), entrustecs.TypeName: seconds(w.Entrust),
		globalsign.TypeName: seconds(w.GlobalSign), sectigo.TypeName: seconds(w.Sectigo),
	}
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// The parts of a CA account's rate that the two services which call CAs may use: asyncpoller asks again and again, issuance
// once per order, and for lists and revocations. They cannot borrow from each other, and so need not talk.
const (
	pollerShare   = 0.6
	issuanceShare = 0.4
)

// accountShare is what one replica of a service may use of the rate of each CA account, so that all replicas of both services
// together keep it.
func accountShare(service string, replicas int) float64 {
	share := issuanceShare
	if service == nameAsyncPoller {
		share = pollerShare
	}
	return share / float64(max(replicas, 1))
}

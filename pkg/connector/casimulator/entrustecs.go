package casimulator

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// entrustecsAPI is Entrust Certificate Services Enterprise, version 2, with an account that has a pooled inventory. A
// client certificate is not needed there.
type entrustecsAPI struct{ sim *Simulator }

func newEntrustECS(s *Simulator) api { return &entrustecsAPI{sim: s} }

func (a *entrustecsAPI) name() string { return EntrustECS }

func (a *entrustecsAPI) operations() []operation {
	op := func(name, method, path string, h func(*call) reply) operation {
		return operation{name: name, method: method, path: "/enterprise/v2" + path, handle: a.authorised(h)}
	}
	submit := op(opSubmit, http.MethodPost, "/certificates", a.submit)
	submit.about = a.about
	return []operation{
		submit,
		op(opList, http.MethodGet, "/certificates", a.list),
		op(opStatus, http.MethodGet, "/certificates/{id}", a.get),
		op(opApprove, http.MethodPatch, "/certificates/{id}", a.patch),
		op(opRenew, http.MethodPost, "/certificates/{id}/renewals", a.renew),
		op(opReissue, http.MethodPost, "/certificates/{id}/reissues", a.reissue),
		op(opRevoke, http.MethodPost, "/certificates/{id}/revocations", a.revoke),
		op(opOther, http.MethodPost, "/certificates/{id}/deactivations", a.deactivate),
		op(opProfiles, http.MethodGet, "/organizations", a.organizations),
		op(opProfiles, http.MethodGet, "/clients", a.clients),
		op(opProfiles, http.MethodGet, "/inventories", a.inventories),
		op(opProbe, http.MethodGet, "/application/version", a.version),
	}
}

// ecsMessage is one of the errors of an answer.
type ecsMessage struct {
	Message string `json:"message"`
}

func (a *entrustecsAPI) problem(status int, message string) reply {
	return ecsProblem(status, message)
}

func (a *entrustecsAPI) refusal(status int, _, message string) reply {
	return a.problem(status, message)
}

func ecsProblem(status int, messages ...string) reply {
	all := make([]ecsMessage, len(messages))
	for i, m := range messages {
		all[i].Message = m
	}
	return jsonReply(status, struct {
		Status int          `json:"status"`
		Errors []ecsMessage `json:"errors"`
	}{status, all})
}

// decode reads a body. It gives the answer to one that is wrong.
func (a *entrustecsAPI) decode(c *call, into any) (reply, bool) {
	if err := c.decode(into); err != nil {
		return ecsProblem(http.StatusBadRequest, err.Error()), false
	}
	return reply{}, true
}

// authorised lets through who has the API user and key (RFC 7617).
func (a *entrustecsAPI) authorised(h func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		user, key, _ := c.request.BasicAuth()
		want := a.sim.Credentials()
		ok := subtle.ConstantTimeCompare([]byte(user), []byte(want.EntrustECSUser)) &
			subtle.ConstantTimeCompare([]byte(key), []byte(want.EntrustECSKey))
		if ok != 1 {
			r := c.refuse(http.StatusUnauthorized, "the API user or key is wrong")
			r.header.Set("WWW-Authenticate", `Basic realm="entrust"`)
			return r
		}
		return h(c)
	}
}

func (a *entrustecsAPI) locate(c *call) (*order, bool) {
	return a.sim.store.byID(EntrustECS, c.path("id"))
}

// trackingID is the number of an order as the API writes it.
func trackingID(o *order) int64 {
	n, _ := strconv.ParseInt(o.ID, 10, 64) // the store gives only numbers
	return n
}

func (a *entrustecsAPI) version(*call) reply {
	return jsonReply(http.StatusOK, map[string]string{"version": "14.0.0"})
}

// ecsOrganization is one that may stand in certificates.
type ecsOrganization struct {
	Name               string `json:"name"`
	VerificationStatus string `json:"verificationStatus"`
	ClientID           int    `json:"clientId"`
}

func (a *entrustecsAPI) allOrganizations() []ecsOrganization {
	own := a.sim.Credentials()
	return []ecsOrganization{
		{own.EntrustECSOrganization, "APPROVED", own.EntrustECSClient},
		{"Example Subsidiary Ltd", "APPROVED", own.EntrustECSClient},
		{"Example Unverified GmbH", "PENDING", 2},
	}
}

func (a *entrustecsAPI) organizations(*call) reply {
	return jsonReply(http.StatusOK, map[string][]ecsOrganization{"organizations": a.allOrganizations()})
}

// ecsClient is a customer of the account.
type ecsClient struct {
	ClientID           int    `json:"clientId"`
	ClientName         string `json:"clientName"`
	VerificationStatus string `json:"verificationStatus"`
}

func (a *entrustecsAPI) allClients() []ecsClient {
	own := a.sim.Credentials()
	return []ecsClient{
		{own.EntrustECSClient, own.EntrustECSOrganization, "APPROVED"},
		{2, "Example Unverified GmbH", "PENDING"},
	}
}

func (a *entrustecsAPI) clients(*call) reply {
	return jsonReply(http.StatusOK, map[string][]ecsClient{"clients": a.allClients()})
}

// ecsInventory is how many certificates of a type the account may have in each type.
const ecsInventory = 1_000_000

func (a *entrustecsAPI) inventories(*call) reply {
	type item struct {
		ProductType    string `json:"productType"`
		TotalCount     int    `json:"totalCount"`
		RemainingCount int    `json:"remainingCount"`
		UsedCount      int    `json:"usedCount"`
	}
	used := map[string]int{}
	for _, o := range a.sim.store.all(EntrustECS) {
		used[o.Product] += o.Billed
	}
	var all []item
	for _, t := range ecsTypes() {
		all = append(all, item{t, ecsInventory, ecsInventory - used[t], used[t]})
	}
	return jsonReply(http.StatusOK, map[string][]item{"inventories": all})
}

// ecsBool is a boolean. The API takes its text as well.
type ecsBool bool

// UnmarshalJSON reads either.
func (b *ecsBool) UnmarshalJSON(text []byte) error {
	var v bool
	if err := json.Unmarshal([]byte(strings.Trim(string(text), `"`)), &v); err != nil {
		return err
	}
	*b = ecsBool(v)
	return nil
}

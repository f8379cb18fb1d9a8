package casimulator

import (
	"fmt"
	"net/http"
	"path"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGlobalSignQuotaGoesDownAndThenRefuses(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	two := 2
	h.sim.Play(Scenario{GlobalSign: GlobalSignAccount{Quota: &two}})
	for i := range 2 {
		require.Equal(t, 2-i, h.count("/quotas/issuance"))
		_, csr := newCSR(t, "")
		h.submit(h.order(csr, "www.example.com"))
	}
	require.Equal(t, 0, h.count("/quotas/issuance"))
	_, csr := newCSR(t, "")
	h.must(http.StatusForbidden, http.MethodPost, h.url("/certificates"), h.header(), h.order(csr, "www.example.com"))
	require.Len(t, h.sim.Orders(), 2)
	require.Equal(t, 2, h.count("/counters/certificates/issued"))
}

func TestGlobalSignListsWhatWasIssuedPageByPage(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	began := h.now()
	var serials []string
	for i := range 5 {
		_, csr := newCSR(t, "")
		serials = append(serials, h.submit(h.order(csr, "host-"+strconv.Itoa(i)+".example.com")))
		h.pass(10 * time.Second)
	}
	h.sim.Play(Scenario{Latency: time.Hour})
	_, csr := newCSR(t, "")
	h.submit(h.order(csr, "late.example.com"))

	type entry struct {
		Serial    string `json:"serial_number"`
		NotBefore int64  `json:"not_before"`
		NotAfter  int64  `json:"not_after"`
	}
	list := func(query string) (entries []entry, total string) {
		a := h.must(http.StatusOK, http.MethodGet, h.url("/stats/"+query), h.header(), nil)
		a.into(t, &entries)
		return entries, a.header.Get("Total-Count")
	}
	var seen []string
	for page := 1; page <= 3; page++ {
		entries, total := list(fmt.Sprintf("issued?page=%d&per_page=2&from=%d&to=%d", page, began.Unix(), h.now().Unix()))
		require.Equal(t, "5", total, "what is still being made is not in the list")
		for _, e := range entries {
			seen = append(seen, e.Serial)
			require.Less(t, e.NotBefore, e.NotAfter)
		}
	}
	require.Equal(t, serials, seen)
	entries, total := list(fmt.Sprintf("issued?page=4&per_page=2&from=%d", began.Unix()))
	require.Empty(t, entries)
	require.Equal(t, "5", total)
	_, total = list(fmt.Sprintf("issued?from=%d", began.Add(15*time.Second).Unix()))
	require.Equal(t, "3", total)

	h.must(http.StatusNoContent, http.MethodPatch, h.url("/certificates/"+serials[2]), h.header(), object{"revocation_reason": "keyCompromise"})
	entries, _ = list("revoked?page=1")
	require.Len(t, entries, 1)
	require.Equal(t, serials[2], entries[0].Serial)
	_, total = list(fmt.Sprintf("expiring?from=%d&to=%d", h.now().Unix(), h.now().Add(24*time.Hour).Unix()))
	require.Equal(t, "0", total)
	h.pass(10 * time.Second)
	h.sim.Set(Fault{CA: GlobalSign, Operation: "list", Kind: Forgotten, Delay: 90 * time.Second})
	_, total = list("issued?page=1")
	require.Equal(t, "0", total, "the statistics are late")
	h.pass(35 * time.Second)
	entries, _ = list("issued?page=1")
	require.Equal(t, serials[0], entries[0].Serial)
	require.Less(t, len(entries), 5)
	h.sim.Set()
	for _, bad := range []string{"page=0", "per_page=101", "from=yesterday", "since=1"} {
		h.must(http.StatusUnprocessableEntity, http.MethodGet, h.url("/stats/issued?"+bad), h.header(), nil)
	}
}

func TestGlobalSignIsTheSameAfterARestartInTheMiddleOfAnOrder(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.sim.Play(Scenario{Latency: 5 * time.Minute})
	key, csr := newCSR(t, "")
	serial := h.submit(h.order(csr, "www.example.com"))
	h.get(http.StatusAccepted, serial)
	before := h.trustChain()
	h.restart()
	h.get(http.StatusAccepted, serial) // with the same token, as it is a JWT
	require.Equal(t, before[0].Raw, h.trustChain()[0].Raw)
	h.pass(5 * time.Minute)
	got := h.get(http.StatusOK, serial)
	h.restart()
	require.Equal(t, got, h.get(http.StatusOK, serial), "the certificate does not change any more")
	require.True(t, key.PublicKey.Equal(parseOne(t, got.Certificate).PublicKey))
	require.Len(t, h.sim.Orders(), 1)
}

func TestGlobalSignSaysWhyItRefusedAnAcceptedRequest(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	h.sim.Set(Fault{CA: GlobalSign, Operation: "submit", Kind: Reject, Delay: time.Minute, Reason: "CAA forbids it"})
	_, csr := newCSR(t, "")
	serial := h.submit(h.order(csr, "www.example.com"))
	h.get(http.StatusAccepted, serial)
	h.pass(time.Minute)
	require.Contains(t, h.get(http.StatusUnprocessableEntity, serial).Description, "CAA forbids it")
}

func TestGlobalSignClaimsDomains(t *testing.T) {
	t.Parallel()
	h := newHVCA(t)
	var claim struct {
		Token    string `json:"token"`
		AssertBy int64  `json:"assert_by"`
		ID       string `json:"id"`
	}
	a := h.must(http.StatusCreated, http.MethodPost, h.url("/claims/domains/example.com."), h.header(), nil)
	a.into(t, &claim)
	require.Equal(t, claim.ID, path.Base(a.header.Get("Location")))
	require.NotEmpty(t, claim.Token)
	target := h.url("/claims/domains/" + claim.ID)
	h.must(http.StatusCreated, http.MethodPost, target+"/dns", h.header(), object{"authorization_domain": "example.com"})
	h.must(http.StatusNoContent, http.MethodPost, target+"/dns", h.header(), object{"authorization_domain": "example.com"})
	var all []struct {
		Domain string `json:"domain"`
		Status string `json:"status"`
	}
	a = h.must(http.StatusOK, http.MethodGet, h.url("/claims/domains?status=VERIFIED"), h.header(), nil)
	a.into(t, &all)
	require.Equal(t, "1", a.header.Get("Total-Count"))
	require.Equal(t, "example.com.", all[0].Domain)
	h.must(http.StatusOK, http.MethodPost, target+"/reassert", h.header(), nil)
	h.must(http.StatusNoContent, http.MethodDelete, target, h.header(), nil)
	h.must(http.StatusNotFound, http.MethodGet, target, h.header(), nil)
}

package entrustgateway_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func requireInconclusive(t *testing.T, ok bool, err error) {
	t.Helper()
	require.False(t, ok)
	refused, permanent := issuer.AsPermanent(err)
	require.True(t, permanent, "that it is not there cannot be told: %v", err)
	require.Equal(t, "LOOKUP_NOT_CONCLUSIVE", refused.Reason)
	require.Contains(t, refused.Message, "LOOKUP_NOT_CONCLUSIVE", "people see the sentence only")
	require.Contains(t, refused.Message, "cancel this order")
}

func TestAnEnrolmentThatMayWaitIsNotSaidNotToBeThere(t *testing.T) {
	t.Parallel()
	lose := func(sim *casimulator.Simulator) {
		sim.Set(
			casimulator.Fault{CA: casimulator.EntrustGateway, Operation: "submit", Kind: casimulator.NeedsApproval, Times: 1},
			casimulator.Fault{CA: casimulator.EntrustGateway, Operation: "submit", Kind: casimulator.DropAfter, Times: 1},
		)
	}
	i, sim := connect(t, casimulator.Scenario{}, func(s map[string]any) { s["enrollments_are_immediate"] = false })
	lose(sim)
	r := order(t, "ord-waits", "www.example.com")
	_, err := i.Submit(t.Context(), r)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	_, ok, err := i.FindOrder(t.Context(), lost(r))
	requireInconclusive(t, ok, err)
	require.NoError(t, sim.Decide(casimulator.EntrustGateway, sim.Orders()[0].ID, "approve", ""))
	_, ok, err = i.FindOrder(t.Context(), lost(r))
	require.NoError(t, err)
	require.True(t, ok, "what a human has issued is found")

	for setting, sure := range map[any]bool{true: true, nil: false} {
		i, sim := connect(t, casimulator.Scenario{}, func(s map[string]any) {
			if setting != nil {
				s["enrollments_are_immediate"] = setting
			}
		})
		_, ok, err := i.FindOrder(t.Context(), lost(r))
		require.NoError(t, err, "no enrolment was seen to wait")
		require.False(t, ok)
		sim.Set(casimulator.Fault{CA: casimulator.EntrustGateway, Operation: "submit", Kind: casimulator.NeedsApproval, Times: 1})
		sub, err := i.Submit(t.Context(), order(t, "ord-other", "other.example.com"))
		require.NoError(t, err)
		require.Equal(t, issuer.Pending, sub.State)
		_, ok, err = i.FindOrder(t.Context(), lost(r))
		if sure {
			require.NoError(t, err)
			require.False(t, ok)
			continue
		}
		requireInconclusive(t, ok, err)
	}
}

func TestAnEnrolmentThatCannotBeAskedForIsLost(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"enrollment":{"id":"` + strings.Repeat("x", 300) + `","status":"ACCEPTED"}}`, `{"enrollment":{"serialNumber":"none","status":"ACCEPTED"}}`,
		`{"enrollment":{"body":"rubbish"}}`,
	} {
		mux := http.NewServeMux()
		say(mux, "GET "+ofCA+"/profiles/{id}", 200, `{"profile":{}}`)
		say(mux, "POST "+ofCA+"/enrollments", 201, body)
		_, err := scripted(t, mux).Submit(t.Context(), order(t, "ord-1", "www.example.com"))
		_, ok := issuer.AsUnknownOutcome(err)
		require.True(t, ok, "%s: %v", body, err)
	}
}

func TestACertificateThatCannotBeReadIsAskedForAgain(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	say(mux, "GET "+ofCA+"/certificates/{serial}", 200, `{"certificate":{"serialNumber":"0AB1","certificateData":"AAEC"}}`)
	say(mux, "GET "+ofCA+"/profiles/{id}", 200, `{"profile":{}}`)
	say(mux, "POST "+ofCA+"/enrollments", 200, `{"enrollment":{"id":"e-1","serialNumber":"0AB1","body":"-----BEGIN CERTIFICATE-----\nAAEC"}}`)
	i := scripted(t, mux)
	sub, err := i.Submit(t.Context(), order(t, "ord-1", "www.example.com"))
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, sub.State, "it is placed")
	_, err = i.Poll(t.Context(), sub.Ref)
	require.Error(t, err)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
}

// feed is a gateway with many pages of events, the last of which tells of wanted. It forgets indexes when it is told.
func feed(t *testing.T, pages int, wanted issuer.Submission, forget *bool) *http.ServeMux {
	t.Helper()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	other, err := fake.Submit(t.Context(), order(t, "ord-other", "other.example.com"))
	require.NoError(t, err)
	events := func(sub issuer.Submission) []map[string]string {
		leaf := leafOf(t, sub)
		return []map[string]string{{
			"action": "ISSUED", "serialNumber": fmt.Sprintf("%X", leaf.SerialNumber), "certificate": base64.StdEncoding.EncodeToString(leaf.Raw),
		}}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ofCA+"/certificate-events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		index := r.URL.Query().Get("nextPageIndex")
		if index != "" && *forget {
			*forget = false
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"type":"ErrorResponse","error":{"code":"bad-index"}}`))
			return
		}
		n, _ := strconv.Atoi(index)
		sub := other
		if n == pages {
			sub = wanted
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"events": events(sub), "morePages": n < pages, "nextPageIndex": strconv.Itoa(n + 1)})
	})
	leaf := leafOf(t, wanted)
	say(mux, fmt.Sprintf("GET %s/certificates/%X", ofCA, leaf.SerialNumber), 200,
		`{"certificate":{"status":"normal","certificateData":"`+base64.StdEncoding.EncodeToString(leaf.Raw)+`"}}`)
	say(mux, "GET "+ofCA, 200, `{"ca":{"certificate":{"certificateData":"`+base64.StdEncoding.EncodeToString(leaf.Raw)+`"}}}`)
	return mux
}

func TestAnEnrolmentIsReachedHoweverBusyTheGatewayIs(t *testing.T) {
	t.Parallel()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	r := order(t, "ord-1", "www.example.com")
	wanted, err := fake.Submit(t.Context(), r)
	require.NoError(t, err)
	forget := false
	const pages = 23
	i := scripted(t, func() *http.ServeMux {
		mux := feed(t, pages, wanted, &forget)
		say(mux, "GET "+ofCA+"/profiles/{id}", 200, `{"profile":{}}`)
		say(mux, "POST "+ofCA+"/enrollments", 201, `{"enrollment":{"id":"e-1","status":"ACCEPTED"}}`)
		say(mux, "GET "+ofCA+"/enrollments/{id}", 501, `{"type":"ErrorResponse","error":{"code":"not-implemented"}}`)
		return mux
	}())
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	polls := 0
	for ; sub.State == issuer.Pending; polls++ {
		require.Less(t, polls, 12, "it is never reached")
		forget = polls == 2
		sub, err = i.Poll(t.Context(), sub.Ref)
		require.NoError(t, err)
	}
	require.Equal(t, issuer.Issued, sub.State)
	require.Greater(t, polls, pages/5, "a poll reads a few pages")
	require.Equal(t, leafOf(t, wanted).SerialNumber, leafOf(t, sub).SerialNumber)
}

func TestACertificateThatTheFeedDoesNotGiveMayBeTheOrders(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	say(mux, "GET "+ofCA+"/certificate-events", 200, `{"events":[{"action":"ISSUED","serialNumber":"0AB1"}]}`)
	say(mux, "GET "+ofCA+"/certificates/{serial}", 404, `{"type":"ErrorResponse","error":{"code":"not-found"}}`)
	i := scripted(t, mux)
	find := lost(order(t, "ord-1", "www.example.com"))
	find.Since = time.Now().Add(-time.Hour)
	_, ok, err := i.FindOrder(t.Context(), find)
	require.False(t, ok)
	require.Error(t, err)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
}

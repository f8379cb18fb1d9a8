package digicert_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

func TestQuestionsThatAreRefusedAreAskedAgain(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{Latency: 1 << 50})
	i := c.issuer(t, nil)
	r := request(t, "asked")
	ref := submit(t, i, r).Ref
	for _, status := range []int{400, 405, 409, 422} {
		for _, operation := range []string{"status", "list"} {
			c.sim.Set(casimulator.Fault{CA: casimulator.DigiCert, Operation: operation, Kind: casimulator.ClientError, Status: status, Code: "busy"})
			_, err := i.Poll(t.Context(), ref)
			if operation == "list" {
				_, _, err = i.FindOrder(t.Context(), findRequest(r))
			}
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%d of %s: %v", status, operation, err)
			require.ErrorContains(t, err, "busy")
		}
	}
}

func TestReissueIsFoundWhateverTheSettingsSayToday(t *testing.T) {
	t.Parallel()
	for _, today := range []string{"new_order", "renewal_order"} {
		c := newCA(t, casimulator.Scenario{})
		_, r := issued(t, c.issuer(t, nil), nil)
		c.sim.Set(casimulator.Fault{CA: casimulator.DigiCert, Operation: "reissue", Kind: casimulator.DropAfter, Times: 1})
		_, err := c.issuer(t, nil).Submit(t.Context(), r)
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
		i := c.issuer(t, func(s map[string]any) { s["renewal"] = today })
		sub, found := find(t, i, r)
		require.True(t, found)
		check(t, r, finish(t, i, sub))
		require.Len(t, c.sim.Orders(), 1)
	}
}

func TestOrderIsKnownByItsCommentsOrItsCSR(t *testing.T) {
	t.Parallel()
	const ours, other = "ord-0199f0c6-5a8e-7c3b-9a57-0123456789ab", "ord-0199f0c6-5a8e-7c3b-9a57-ba9876543210"
	r := request(t, "known")
	r.OrderID = ours
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR.Raw}))
	for name, c := range map[string]struct {
		comments []string
		csr      string
		want     bool
	}{
		"our id":                          {[]string{ours}, "", true},
		"our id among others":             {[]string{"approved by Ada", ours}, csr, true},
		"no comments, our CSR":            {nil, csr, true},
		"a person's comment, our CSR":     {[]string{"approved by Ada"}, csr, true},
		"another order of ours, same CSR": {[]string{other}, csr, false},
		"a person's comment, no CSR":      {[]string{"approved by Ada"}, "", false},
		"neither":                         {nil, "", false},
	} {
		i := scripted(t, func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "/order/certificate") {
				write(w, http.StatusOK, `{"orders":[{"id":7}],"page":{"total":1}}`)
				return
			}
			requests := make([]map[string]any, len(c.comments))
			for n, text := range c.comments {
				requests[n] = map[string]any{"id": n + 1, "type": "new_request", "comments": text}
			}
			body, _ := json.Marshal(map[string]any{"id": 7, "status": "pending", "requests": requests, "certificate": map[string]any{"csr": c.csr}})
			write(w, http.StatusOK, string(body))
		})
		_, found := find(t, i, r)
		require.Equal(t, c.want, found, name)
	}
}

func TestReissueThatIsOnlyARequestIsKnownByItsComment(t *testing.T) {
	t.Parallel()
	i := scripted(t, func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasSuffix(req.URL.Path, "/reissue"):
			write(w, http.StatusOK, `{"certificates":[]}`)
		default:
			write(w, http.StatusOK, `{"id":7,"status":"issued","certificate":{"id":1},"requests":[
				{"id":3,"type":"reissue","status":"pending","comments":"requested"},{"id":2,"type":"revoke","status":"pending","comments":"requested"}]}`)
		}
	})
	r := request(t, "requested")
	r.Previous = issuer.Ref{"order_id": "7", "certificate_id": "1"}
	sub, found := find(t, i, r)
	require.True(t, found)
	require.Equal(t, "3", sub.Ref["request_id"])
	require.Equal(t, "true", sub.Ref["reissue"])
	require.Equal(t, "1", sub.Ref["previous_certificate_id"])
}

func TestListThatCannotBeReadToItsEndIsNotAnAnswer(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]issuer.Outcome{100: issuer.OutcomePermanent, 0: issuer.OutcomeRetry} {
		rows := strings.TrimSuffix(strings.Repeat(`{"id":7,"date_created":"2000-01-01T00:00:00Z"},`, n), ",")
		i := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
			write(w, http.StatusOK, fmt.Sprintf(`{"orders":[%s],"page":{"total":1000000}}`, rows))
		})
		_, _, err := i.FindOrder(t.Context(), findRequest(request(t, "many")))
		require.Equal(t, want, issuer.OutcomeOf(err), "%v", err)
		if p, ok := issuer.AsPermanent(err); ok {
			require.Equal(t, "LOOKUP_TOO_LARGE", p.Reason)
		}
	}
}

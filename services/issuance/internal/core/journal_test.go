package core

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// intentsOf makes intents of requests, as Submit does.
func (w *world) intentsOf(requests ...SubmitRequest) []intent {
	w.t.Helper()
	out := make([]intent, 0, len(requests))
	for _, r := range requests {
		o, ru, _, err := w.prepare(w.ctx(), r)
		require.NoError(w.t, err)
		out = append(out, intent{Intent: store.Intent{Order: o, Guard: ru.guard(), LeaseFor: w.cfg.orderLease(ru.instance)}})
		out[len(out)-1].events = append(out[len(out)-1].events, auditOrder(w.ctx(), o, "order.submitted", nil))
	}
	return out
}

func requests(t *testing.T, n int) []SubmitRequest {
	t.Helper()
	out := make([]SubmitRequest, 0, n)
	for range n {
		out = append(out, request(t, DefaultIssuerID))
	}
	return out
}

func TestFiftyIntentsCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, fifty := w.intentsOf(requests(t, 1)...), w.intentsOf(requests(t, 50)...)
	counter := w.countStatements()

	require.Equal(t, []batch.Outcome[bool]{{Value: true}}, writeIntents(w.ctx(), w.Core, one))
	require.Len(t, counter(), 2, "%v", counter())
	for _, o := range writeIntents(w.ctx(), w.Core, fifty) {
		require.Equal(t, batch.Outcome[bool]{Value: true}, o)
	}
	require.Len(t, counter(), 4, "%v", counter())
}

func TestFiftyResultsCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	results := make([]result, 0, 50)
	for _, r := range requests(t, 50) {
		i := w.intentsOf(r)[0]
		require.Equal(t, []batch.Outcome[bool]{{Value: true}}, writeIntents(w.ctx(), w.Core, []intent{i}))
		o := i.Order
		o.Revision, o.Status, o.IssueTime = 1, Issued, w.now()
		results = append(results, result{Issue: store.Issue{Order: o, Certificate: store.Certificate{
			SerialNumber: o.SerialNumber, Fingerprint: o.ID, NotBefore: w.now(), NotAfter: w.now(), CertificatePEM: "PEM",
		}}})
	}
	for i := range results {
		results[i].events = append(results[i].events, orderChanged(results[i].Order))
	}
	counter := w.countStatements()
	for _, o := range writeResults(w.ctx(), w.Core, results) {
		require.Equal(t, batch.Outcome[bool]{Value: true}, o)
	}
	require.Len(t, counter(), 2, "%v", counter())
	for _, o := range writeResults(w.ctx(), w.Core, results[:3]) {
		require.Equal(t, batch.Outcome[bool]{}, o, "who comes second finds what the first stored")
	}
}

func TestOneIntentThatCannotBeStoredCostsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	list := w.intentsOf(requests(t, 5)...)
	list[1].Order.JobID = "a NUL \x00 that Postgres does not take"
	list[2].Guard.ProfileRevision++
	list[4] = list[3]

	outcomes := writeIntents(w.ctx(), w.Core, list)

	require.True(t, outcomes[0].Value)
	require.Error(t, outcomes[1].Err)
	require.Equal(t, batch.Outcome[bool]{}, outcomes[2], "the profile has another revision")
	require.True(t, outcomes[3].Value)
	require.Equal(t, batch.Outcome[bool]{}, outcomes[4], "of two with one id, one is stored")
	require.Len(t, w.events("audit.record", list[0].Order.ID), 1)
	require.Len(t, w.events("audit.record", list[3].Order.ID), 1)
	require.Empty(t, w.events("audit.record", list[1].Order.ID), "what is not stored is not told")
}

func TestAResultThatIsAnotherOrdersCostsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var list []result
	for _, i := range w.intentsOf(requests(t, 3)...) {
		require.Equal(t, []batch.Outcome[bool]{{Value: true}}, writeIntents(w.ctx(), w.Core, []intent{i}))
		o := i.Order
		o.Revision, o.Status, o.IssueTime = 1, Issued, w.now()
		list = append(list, result{Issue: store.Issue{Order: o, Certificate: store.Certificate{
			SerialNumber: o.SerialNumber, NotBefore: w.now(), NotAfter: w.now(), CertificatePEM: "PEM",
		}}})
	}
	list[1].Certificate.SerialNumber = list[0].Certificate.SerialNumber

	outcomes := writeResults(w.ctx(), w.Core, list)

	require.True(t, outcomes[0].Value)
	require.ErrorIs(t, outcomes[1].Err, store.ErrExists)
	require.True(t, outcomes[2].Value)
}

func TestOrdersThatComeTogetherAreAllPlaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var all sync.WaitGroup
	for _, r := range requests(t, 60) {
		all.Go(func() {
			o, err := w.Submit(w.ctx(), r)
			require.NoError(t, err)
			require.Equal(t, Issued, o.Status)
			require.EqualValues(t, 2, o.Revision)
			again, err := w.Submit(w.ctx(), r)
			require.NoError(t, err)
			require.Equal(t, o.SerialNumber, again.SerialNumber)
			require.Len(t, w.events("certificate.issued", r.CertificateID), 1)
		})
	}
	wrong := request(t, DefaultIssuerID)
	wrong.Names.DNSNames = []string{"other.example.com"}
	_, err := w.Submit(w.ctx(), wrong)
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	all.Wait()
}

package issuertest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func TestFakeThatAnswersAtOnceConforms(t *testing.T) {
	t.Parallel()
	runFake(t, issuertest.Plan{})
}

func TestFakeThatAnswersPendingConforms(t *testing.T) {
	t.Parallel()
	runFake(t, issuertest.Plan{Polls: 4})
}

func TestFakeThatSendsTheRootFirstConforms(t *testing.T) {
	t.Parallel()
	runFake(t, issuertest.Plan{Polls: 1, RootFirst: true})
}

func runFake(t *testing.T, p issuertest.Plan) {
	t.Helper()
	shape, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	issuertest.Run(t, issuertest.Suite{
		Type: shape.Type(),
		New: func(t testing.TB) issuer.Issuer {
			t.Helper()
			f, err := issuertest.NewFake(issuertest.FakeConfig{})
			require.NoError(t, err)
			f.PlanAll(p)
			return f
		},
	})
}

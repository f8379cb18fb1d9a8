package gateway_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
)

const list = "/api/v1/certificates"

func TestATagIsTheHashOfTheBody(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, path := range []string{list, "/api/v1/agents", "/api/v1/jobs", "/api/v1/audit", "/api/v1/discovered-certificates"} {
		a := w.get(t, path)
		require.Equal(t, http.StatusOK, a.StatusCode, a.body)
		sum := sha256.Sum256([]byte(a.body))
		require.Equal(t, `"`+hex.EncodeToString(sum[:])+`"`, a.Header.Get("ETag"), path)
		require.Equal(t, "private, no-cache", a.Header.Get("Cache-Control"))
		require.Contains(t, a.Header.Values("Vary"), "Authorization")
		require.Equal(t, http.StatusNotModified, w.get(t, path, "If-None-Match: "+a.Header.Get("ETag")).StatusCode, path)
	}
	for _, path := range []string{list + "/cert-1", "/api/v1/version", "/api/v1/certificates/cert-1/versions/1"} {
		require.Empty(t, w.get(t, path).Header.Get("ETag"), path)
	}
}

func TestARepeatOfAnUnchangedListReadsARevisionAndNotTheList(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	tag := w.get(t, list).Header.Get("ETag")
	lists, asked := w.inventory.lists.Load(), w.inventory.asked.Load()
	for n := int64(1); n <= 3; n++ {
		a := w.get(t, list, "If-None-Match: "+tag)
		require.Equal(t, http.StatusNotModified, a.StatusCode)
		require.Empty(t, a.body)
		require.Equal(t, tag, a.Header.Get("ETag"))
		require.Empty(t, a.Header.Get("Content-Type"))
		require.Empty(t, a.Header.Get("Content-Length"))
		require.Equal(t, "private, no-cache", a.Header.Get("Cache-Control"))
		require.Equal(t, asked+n, w.inventory.asked.Load(), "one indexed read")
	}
	require.Equal(t, lists, w.inventory.lists.Load(), "no query")
	a := w.request(t, http.MethodHead, list, "", "If-None-Match: "+tag)
	require.Equal(t, http.StatusNotModified, a.StatusCode)
	require.Equal(t, lists, w.inventory.lists.Load())
}

func TestAChangeGivesANewTag(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	tag := w.get(t, list).Header.Get("ETag")
	w.inventory.set(nil, "three")
	a := w.get(t, list, "If-None-Match: "+tag)
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.Contains(t, a.body, "cert-three")
	require.NotEqual(t, tag, a.Header.Get("ETag"))
	w.inventory.set(nil, "three") // a change somewhere else in the collection
	b := w.get(t, list, "If-None-Match: "+a.Header.Get("ETag"))
	require.Equal(t, http.StatusNotModified, b.StatusCode, "the same body is the same, whatever its revision")
}

func TestAnotherReplicaAnswersTheSame(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	one, two := s.start(t, nil), s.start(t, nil)
	tag := one.get(t, list).Header.Get("ETag")
	require.Equal(t, http.StatusNotModified, two.get(t, list, "If-None-Match: "+tag).StatusCode, "it has never seen the list")
	s.inventory.set(nil, "changed")
	for _, w := range []*world{one, two} {
		require.Contains(t, w.get(t, list, "If-None-Match: "+tag).body, "cert-changed")
	}
	require.Equal(t, one.get(t, list).Header.Get("ETag"), two.get(t, list).Header.Get("ETag"))
}

func TestEachCallerAndEachQueryHasItsOwn(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	tag := w.get(t, list).Header.Get("ETag")
	lists := w.inventory.lists.Load()
	a := w.get(t, list, "If-None-Match: "+tag, "Authorization: Bearer "+viewerKey)
	require.Equal(t, lists+1, w.inventory.lists.Load(), "what an admin was shown says nothing about a viewer")
	require.Equal(t, http.StatusNotModified, a.StatusCode)
	w.get(t, list+"?page_size=3", "If-None-Match: "+tag)
	require.Equal(t, lists+2, w.inventory.lists.Load())
	w.get(t, list+"?name=b&page_size=3")
	w.get(t, list+"?page_size=3&name=b", "If-None-Match: "+tag)
	require.Equal(t, lists+3, w.inventory.lists.Load(), "the order of parameters does not matter")
	require.Equal(t, http.StatusForbidden, w.get(t, "/api/v1/audit", "If-None-Match: *", "Authorization: Bearer "+viewerKey).StatusCode)
}

func TestIfNoneMatchIsReadAsTheStandardSays(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	tag := w.get(t, list).Header.Get("ETag")
	for header, status := range map[string]int{
		"*": 304, "W/" + tag: 304, `"other", ` + tag: 304, `"a,b", W/` + tag + `, "c"`: 304, `,,` + tag: 304,
		`"other"`: 200, strings.Trim(tag, `"`): 200, `W/"other"`: 200, `"` + tag: 200, `"*"`: 200, "w/" + tag: 200,
	} {
		require.Equal(t, status, w.get(t, list, "If-None-Match: "+header).StatusCode, header)
	}
}

func TestOnlySuccessIsTagged(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	tag := w.get(t, list).Header.Get("ETag")
	for _, header := range []string{"If-None-Match: " + tag, "If-None-Match: *"} {
		w.inventory.set(errors.New("broken"))
		a := w.get(t, list, header)
		a.problem(t, 500)
		require.Empty(t, a.Header.Get("ETag"))
		w.inventory.set(errs.Field("page_token", "is not valid"))
		a = w.get(t, list, header)
		a.problem(t, 400)
		require.Empty(t, a.Header.Get("ETag"))
		a = w.get(t, list+"?unknown=1", header)
		a.problem(t, 400)
		require.Empty(t, a.Header.Get("ETag"))
	}
	a := w.request(t, http.MethodPost, list, `{"name":"x"}`, "If-None-Match: *")
	require.Equal(t, http.StatusCreated, a.StatusCode)
	require.Empty(t, a.Header.Get("ETag"))
}

func TestALargeListArrivesWholeWithoutATag(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	var names []string
	for i := range 400 {
		names = append(names, fmt.Sprintf("%0200d", i))
	}
	w.inventory.set(nil, names...)
	a := w.get(t, list, "If-None-Match: *")
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.Greater(t, len(a.body), 64<<10)
	require.Empty(t, a.Header.Get("ETag"))
	require.True(t, strings.HasSuffix(a.body, `"next_page_token":""}`))
	require.Equal(t, 400, strings.Count(a.body, `"id":"cert-`))
}

func TestNothingIsAnsweredFromMemoryAlone(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	w := s.start(t, nil)
	tag := w.get(t, "/api/v1/jobs").Header.Get("ETag")
	require.NotEmpty(t, tag)
	s.stop["renewalscheduler"]()
	require.Eventually(t, func() bool {
		return w.get(t, "/api/v1/jobs", "If-None-Match: "+tag).StatusCode == http.StatusServiceUnavailable
	}, waitTime, pollTime, "never 304 while the owner of the list is away")
}

package etag

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestWritesAfterTheLimitAreNotLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(0, 40<<10), 0, 8).Draw(t, "sizes")
		flushed := rapid.IntRange(-1, 7).Draw(t, "flush after")
		rec := httptest.NewRecorder()
		w := newWriter(rec)
		var want strings.Builder
		for i, size := range sizes {
			part := strings.Repeat(string(rune('a'+i)), size)
			want.WriteString(part)
			n, err := w.Write([]byte(part))
			require.NoError(t, err)
			require.Equal(t, size, n)
			if i == flushed {
				w.Flush()
			}
		}
		_, tagged := w.answer()
		w.flush()
		require.Equal(t, want.String(), rec.Body.String())
		require.Equal(t, http.StatusOK, rec.Code)
		if len(sizes) > 0 {
			require.Equal(t, want.Len() <= MaxBuffered && (flushed < 0 || flushed >= len(sizes)), tagged)
		}
	})
}

func TestExactlyTheLimitIsTagged(t *testing.T) {
	t.Parallel()
	for size, want := range map[int]bool{MaxBuffered: true, MaxBuffered + 1: false} {
		w := newWriter(httptest.NewRecorder())
		_, err := w.Write(make([]byte, size))
		require.NoError(t, err)
		_, ok := w.answer()
		require.Equal(t, want, ok, size)
	}
}

func TestOnlyStatusesOfSuccessHaveTags(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{200: true, 204: true, 299: true, 199: false, 301: false, 404: false, 500: false} {
		rec := httptest.NewRecorder()
		w := newWriter(rec)
		w.WriteHeader(status)
		w.WriteHeader(http.StatusOK) // the first counts
		_, ok := w.answer()
		require.Equal(t, want, ok, status)
	}
}

func TestTheStatusPassesWithLargeBodies(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	w := newWriter(rec)
	w.WriteHeader(http.StatusTeapot)
	for range 3 {
		_, err := w.Write(make([]byte, MaxBuffered))
		require.NoError(t, err)
	}
	w.flush()
	require.Equal(t, http.StatusTeapot, rec.Code)
	require.Equal(t, 3*MaxBuffered, rec.Body.Len())
}

func TestEntityTagsAreParsed(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		`"a"`: {`"a"`}, `W/"a"`: {`"a"`}, `"a", W/"b" ,"c"`: {`"a"`, `"b"`, `"c"`}, `"a,b"`: {`"a,b"`}, `""`: {`""`},
		`a`: nil, `"a`: nil, `"a" b "c"`: {`"a"`}, ``: nil, `,,,`: nil, `W/`: nil, `"`: nil,
	} {
		require.Equal(t, want, tagsIn(line), line)
	}
	require.True(t, parse([]string{`"x"`, ` * `}).match(`"y"`))
	require.False(t, parse(nil).match(`"y"`))
}

func FuzzEntityTags(f *testing.F) {
	f.Add(`"a", W/"b"`)
	f.Fuzz(func(t *testing.T, line string) {
		for _, tag := range tagsIn(line) {
			if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' || !strings.Contains(line, tag) {
				t.Fatalf("%q has no tag %q", line, tag)
			}
		}
	})
}

func TestMemoryIsBoundedAndForgetsTheOldest(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMemory(3, 1000)
	k := func(i int) key { return sha256.Sum256([]byte(fmt.Sprint(i))) }
	for i := range 3 {
		m.put(k(i), 1, answer{tag: "t"}, now)
	}
	_, ok := m.get(k(0), 1, now) // used again
	require.True(t, ok)
	m.put(k(3), 1, answer{tag: "t"}, now)
	_, ok = m.get(k(1), 1, now)
	require.False(t, ok)
	for _, i := range []int{0, 2, 3} {
		_, ok = m.get(k(i), 1, now)
		require.True(t, ok, i)
	}
	require.Len(t, m.entries, 3)
	require.Equal(t, 3, m.order.Len())
}

func TestTheMemoryOfBodiesIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMemory(100, 1000)
	k := func(i int) key { return sha256.Sum256([]byte(fmt.Sprint(i))) }
	for i := range 50 {
		m.put(k(i), 1, answer{body: make([]byte, 300)}, now)
		require.LessOrEqual(t, m.bytes, 1000)
	}
	m.put(k(49), 2, answer{body: make([]byte, 100)}, now)
	require.Equal(t, 700, m.bytes, "what is replaced does not count")
	require.Len(t, m.entries, 3)
	m.put(k(50), 1, answer{body: make([]byte, 2000)}, now)
	require.Zero(t, m.bytes)
	require.Empty(t, m.entries)
}

func TestATagBelongsToItsRevision(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMemory(3, 1000)
	m.put(key{}, 5, answer{tag: "five"}, now)
	for _, revision := range []int64{4, 6} {
		_, ok := m.get(key{}, revision, now)
		require.False(t, ok)
	}
	m.put(key{}, 4, answer{tag: "four"}, now) // a slow answer
	a, ok := m.get(key{}, 5, now)
	require.True(t, ok)
	require.Equal(t, "five", a.tag)
	_, ok = m.get(key{}, 5, now.Add(maxAge+time.Second))
	require.False(t, ok, "too old")
}

package page_test

import (
	"bytes"
	"encoding/base64"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/secretbox"
)

const secret = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"

func codec(t testing.TB) *page.Codec {
	t.Helper()
	c, err := page.NewCodec(secretbox.NewSecret(secret))
	require.NoError(t, err)
	return c
}

func requireField(t testing.TB, err error, field string) {
	t.Helper()
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	v := errs.From(err).Violations()
	require.Len(t, v, 1)
	require.Equal(t, field, v[0].Field)
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for asked, want := range map[int32]int{0: 50, 1: 1, 50: 50, 1000: 1000, 1001: 1000, math.MaxInt32: 1000} {
		got, err := page.Size(asked)
		require.NoError(t, err)
		require.Equal(t, want, got, "asked for %d", asked)
	}
	for _, asked := range []int32{-1, math.MinInt32} {
		_, err := page.Size(asked)
		requireField(t, err, "page_size")
	}
}

func TestCutTellsWhetherThereIsMore(t *testing.T) {
	t.Parallel()
	rows, more := page.Cut([]int{1, 2, 3}, 2)
	require.Equal(t, []int{1, 2}, rows)
	require.True(t, more)
	rows, more = page.Cut([]int{1, 2}, 2)
	require.Equal(t, []int{1, 2}, rows)
	require.False(t, more)
}

func anyValue(t *rapid.T) page.Value {
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		return page.TextValue(rapid.String().Draw(t, "text"))
	case 1:
		return page.TimeValue(time.UnixMicro(rapid.Int64().Draw(t, "micros")))
	case 2:
		return page.IntValue(rapid.Int64().Draw(t, "int"))
	default:
		return page.Value{}
	}
}

func TestATokenGivesBackItsCursor(t *testing.T) {
	t.Parallel()
	c := codec(t)
	rapid.Check(t, func(r *rapid.T) {
		scope := page.Scope{
			Collection: rapid.String().Draw(r, "collection"),
			Filters:    rapid.MapOf(rapid.String(), rapid.String()).Draw(r, "filters"),
			Order:      rapid.String().Draw(r, "order"),
		}
		cursor := page.Cursor(rapid.SliceOfN(rapid.Custom(anyValue), 1, 2).Draw(r, "cursor"))
		got, err := c.Decode(c.Encode(scope, cursor), scope)
		require.NoError(r, err)
		require.Equal(r, cursor, got)
	})
}

func TestTheEmptyTokenIsTheBeginning(t *testing.T) {
	t.Parallel()
	got, err := codec(t).Decode("", page.Scope{})
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestATokenOfAnotherListIsRefused(t *testing.T) {
	t.Parallel()
	c := codec(t)
	scope := page.Scope{Collection: "certificates", Filters: map[string]string{"status": "ACTIVE", "team": "a"}, Order: "expires_at desc"}
	token := c.Encode(scope, page.Cursor{page.TextValue("cert-1")})
	for name, other := range map[string]page.Scope{
		"collection":    {Collection: "jobs", Filters: scope.Filters, Order: scope.Order},
		"order":         {Collection: scope.Collection, Filters: scope.Filters, Order: "expires_at asc"},
		"filter value":  {Collection: scope.Collection, Filters: map[string]string{"status": "ACTIVE", "team": "b"}, Order: scope.Order},
		"fewer filters": {Collection: scope.Collection, Filters: map[string]string{"status": "ACTIVE"}, Order: scope.Order},
		"moved border":  {Collection: scope.Collection, Filters: map[string]string{"status": "ACTIVE", "teama": ""}, Order: scope.Order},
	} {
		_, err := c.Decode(token, other)
		requireField(t, err, "page_token")
		require.ErrorContains(t, err, "other filters", name)
	}
}

func TestAnAlteredTokenIsRefused(t *testing.T) {
	t.Parallel()
	c := codec(t)
	scope := page.Scope{Collection: "certificates"}
	token := c.Encode(scope, page.Cursor{page.TimeValue(time.Now()), page.TextValue("cert-1")})
	raw, err := base64.RawURLEncoding.DecodeString(token)
	require.NoError(t, err)
	for i := range raw {
		for bit := range 8 {
			altered := bytes.Clone(raw)
			altered[i] ^= 1 << bit
			_, err := c.Decode(base64.RawURLEncoding.EncodeToString(altered), scope)
			requireField(t, err, "page_token")
		}
	}
	for _, bad := range []string{token[1:], token[:len(token)-1], token + "A", token + "\n", " ", "%", strings.Repeat("A", 1<<20)} {
		_, err := c.Decode(bad, scope)
		requireField(t, err, "page_token")
	}
	other, err := page.NewCodec(secretbox.NewSecret(strings.Repeat("j", 32)))
	require.NoError(t, err)
	_, err = other.Decode(token, scope)
	requireField(t, err, "page_token")
}

func TestAShortSecretIsRefused(t *testing.T) {
	t.Parallel()
	_, err := page.NewCodec(secretbox.NewSecret("short"))
	require.Error(t, err)
}

func TestTokensLiveOnWhileTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	scope, cursor := page.Scope{Collection: "c"}, page.Cursor{page.TextValue("c-1")}
	newSecret := strings.Repeat("n", 32)
	var tokens []string
	// Each stage, as a page of the stage before is turned in it.
	for _, list := range []string{secret, secret + "," + newSecret, newSecret + "," + secret, newSecret} {
		c, err := page.NewCodec(secretbox.NewSecret(list))
		require.NoError(t, err)
		tokens = append(tokens, c.Encode(scope, cursor))
		if n := len(tokens); n > 1 {
			got, err := c.Decode(tokens[n-2], scope)
			require.NoError(t, err)
			require.Equal(t, cursor, got)
		}
	}
	require.Equal(t, tokens[0], tokens[1], "the first makes them")
	require.Equal(t, tokens[2], tokens[3])
	last, err := page.NewCodec(secretbox.NewSecret(newSecret))
	require.NoError(t, err)
	_, err = last.Decode(tokens[0], scope)
	requireField(t, err, "page_token")
}

func FuzzDecode(f *testing.F) {
	c := codec(f)
	scope := page.Scope{Collection: "certificates"}
	valid := c.Encode(scope, page.Cursor{page.Value{}, page.TextValue("cert-1")})
	f.Add(valid)
	f.Add("")
	f.Add(valid[:10])
	f.Fuzz(func(t *testing.T, token string) {
		cursor, err := c.Decode(token, scope)
		switch {
		case err != nil:
			requireField(t, err, "page_token")
		case token != "":
			require.Equal(t, token, c.Encode(scope, cursor), "only what was given out is taken")
		}
	})
}

// listRequest builds a message like the API's list requests.
func listRequest(t testing.TB, set map[string]any) proto.Message {
	t.Helper()
	field := func(n int32, name string, typ descriptorpb.FieldDescriptorProto_Type) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{
			Name: &name, Number: &n, Type: &typ, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		}
	}
	text, number := descriptorpb.FieldDescriptorProto_TYPE_STRING, descriptorpb.FieldDescriptorProto_TYPE_INT32
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("list.proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("ListRequest"), Field: []*descriptorpb.FieldDescriptorProto{
			field(1, "page_size", number), field(2, "page_token", text), field(3, "order_by", text),
			field(4, "status", text), field(5, "team", text),
		}}},
	}, nil)
	require.NoError(t, err)
	m := dynamicpb.NewMessage(file.Messages().Get(0))
	for name, v := range set {
		m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(name)), protoreflect.ValueOf(v))
	}
	return m
}

func TestFiltersOfARequestLeaveOutItsPaging(t *testing.T) {
	t.Parallel()
	first := page.FiltersOf(listRequest(t, map[string]any{"status": "ACTIVE", "page_size": int32(10)}))
	second := page.FiltersOf(listRequest(t, map[string]any{"status": "ACTIVE", "page_size": int32(20), "page_token": "x", "order_by": "y"}))
	require.Equal(t, first, second)
	require.NotEqual(t, first, page.FiltersOf(listRequest(t, map[string]any{"status": "EXPIRED"})))
	require.NotEqual(t, first, page.FiltersOf(listRequest(t, map[string]any{"team": "ACTIVE"})))
}

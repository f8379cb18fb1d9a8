package rest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/gateway/internal/problem"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// fill sets fields of a message at random, down to a depth.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if rapid.IntRange(0, 3).Draw(t, "set") == 0 || fd.Message() != nil && depth == 0 {
			continue
		}
		switch {
		case fd.IsMap():
			fillMap(t, m.Mutable(fd).Map(), fd, depth)
		case fd.IsList():
			l := m.Mutable(fd).List()
			for range rapid.IntRange(0, 3).Draw(t, "elements") {
				l.Append(some(t, fd, l.NewElement, depth))
			}
		default:
			m.Set(fd, some(t, fd, func() protoreflect.Value { return m.NewField(fd) }, depth))
		}
	}
}

func fillMap(t *rapid.T, m protoreflect.Map, fd protoreflect.FieldDescriptor, depth int) {
	for range rapid.IntRange(0, 3).Draw(t, "pairs") {
		key := some(t, fd.MapKey(), nil, depth).MapKey()
		m.Set(key, some(t, fd.MapValue(), m.NewValue, depth))
	}
}

// some gives a value of a field's kind.
func some(t *rapid.T, fd protoreflect.FieldDescriptor, empty func() protoreflect.Value, depth int) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32Range(-1, 6).Draw(t, "enum")))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(rapid.Float32().Draw(t, "float"))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, "double"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.String().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
	default:
		v := empty()
		fill(t, v.Message(), depth-1)
		return v
	}
}

// TestTheBytesAreThoseOfProtojson holds for all messages that users are shown, whatever is in them.
func TestTheBytesAreThoseOfProtojson(t *testing.T) {
	t.Parallel()
	var e encoder
	types := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		name := mt.Descriptor().FullName()
		if !strings.HasPrefix(string(name), "certctl.") || mt.Descriptor().IsMapEntry() {
			return true
		}
		types++
		rapid.Check(t, func(t *rapid.T) {
			m := mt.New()
			fill(t, m, 3)
			same(t, &e, m.Interface())
		})
		return true
	})
	require.Greater(t, types, 100)
}

// same compares what both write, or that both refuse.
func same(t require.TestingT, e *encoder, m proto.Message) {
	want, wantErr := options().Marshal(m)
	got, err := e.marshal(m)
	if wantErr != nil {
		require.Error(t, err, "protojson: %v", wantErr)
		return
	}
	require.NoError(t, err)
	require.Equal(t, string(problem.Compact(want)), string(got))
}

func TestEdgesAreThoseOfProtojson(t *testing.T) {
	t.Parallel()
	var e encoder
	var text strings.Builder
	for c := range rune(0x120) {
		text.WriteRune(c)
	}
	for _, s := range []string{"", text.String(), "\u2028\u2029<>&", "a\xffb", "\U0001F600", `"\`} {
		same(t, &e, &inventoryv1.Certificate{Name: s, DnsNames: []string{s}, Labels: map[string]string{s: s, "z": "", "a": "1"}})
	}
	for _, at := range []*timestamppb.Timestamp{
		{}, {Nanos: 1}, {Nanos: 1000}, {Nanos: 1_000_000}, {Nanos: 999_999_999}, {Nanos: -1}, {Nanos: 1_000_000_000},
		{Seconds: minTimestamp}, {Seconds: minTimestamp - 1}, {Seconds: maxTimestamp}, {Seconds: maxTimestamp + 1}, timestamppb.New(time.Now()),
	} {
		same(t, &e, &inventoryv1.Certificate{NotAfter: at})
	}
}

// FuzzWire: what is no message is refused, and what protobuf reads becomes what protojson makes of it.
func FuzzWire(f *testing.F) {
	whole, err := proto.Marshal(page(2))
	require.NoError(f, err)
	for _, seed := range [][]byte{nil, whole, whole[:len(whole)-3], {0x0a, 0x02, 0x0a}, {0x0a, 0x00, 0x0a, 0x02, 0x10, 0x01}, {0x0b, 0x0c}, {0x0a, 0x00, 0x08, 0x01, 0x0a, 0x00}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var e encoder
		m := &inventoryv1.ListCertificatesResponse{}
		m.ProtoReflect().SetUnknown(wire)
		got, err := e.marshal(m)
		read := &inventoryv1.ListCertificatesResponse{}
		if readErr := proto.Unmarshal(wire, read); readErr != nil {
			return // a service sends none: that it does not panic is enough
		}
		want, wantErr := options().Marshal(read)
		require.Equal(t, wantErr != nil, err != nil, "protojson: %v; this: %v", wantErr, err)
		if err == nil {
			require.Equal(t, string(problem.Compact(want)), string(got))
		}
	})
}

// page is a list of certificates as an installation has them.
func page(n int) *inventoryv1.ListCertificatesResponse {
	r := &inventoryv1.ListCertificatesResponse{NextPageToken: "token"}
	now := timestamppb.New(time.Now())
	for i := range n {
		r.Certificates = append(r.Certificates, &inventoryv1.Certificate{
			Id: fmt.Sprintf("cert-%06d", i), Name: "shop", CommonName: "shop.example.com", DnsNames: []string{"shop.example.com", "www.shop.example.com"},
			IssuerId: "iss-local", ProfileId: "prof-default", PolicyId: "pol-default", TargetIds: []string{"target-1"}, Owner: "alice", Team: "web",
			Environment: "production", Labels: map[string]string{"app": "shop", "tier": "front"}, Status: inventoryv1.Certificate_ACTIVE, CurrentVersion: 3,
			SerialNumber: "0123456789abcdef0123456789abcdef", FingerprintSha256: strings.Repeat("0123456789abcdef", 4), NotBefore: now, NotAfter: now,
			CreateTime: now, UpdateTime: now, Revision: 7,
		})
	}
	return r
}

// BenchmarkEncode writes a page of 50 certificates; BenchmarkProtojson is what it is compared with.
func BenchmarkEncode(b *testing.B) {
	var e encoder
	m := page(50)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.marshal(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProtojson(b *testing.B) {
	m := page(50)
	b.ReportAllocs()
	for b.Loop() {
		text, err := options().Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		problem.Compact(text)
	}
}

// TestAPageThatWasNotReadTakesFewAllocations counts two for the labels of each certificate, and little for the page.
func TestAPageThatWasNotReadTakesFewAllocations(t *testing.T) { //nolint:paralleltest // it counts allocations
	var e encoder
	m := unreadPage(t, 50)
	want, err := e.marshal(page(50))
	require.NoError(t, err)
	got, err := e.marshal(m)
	require.NoError(t, err)
	require.Len(t, got, len(want), "but for the times, the pages are the same")
	require.LessOrEqual(t, testing.AllocsPerRun(20, func() { _, _ = e.marshal(m) }), 2*50+10.0)
}

// BenchmarkEncodeUnread writes the same page as it comes from a service.
func BenchmarkEncodeUnread(b *testing.B) {
	var e encoder
	m := unreadPage(b, 50)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.marshal(m); err != nil {
			b.Fatal(err)
		}
	}
}

func unreadPage(t require.TestingT, n int) proto.Message {
	wire, err := proto.Marshal(page(n))
	require.NoError(t, err)
	m := &inventoryv1.ListCertificatesResponse{}
	m.ProtoReflect().SetUnknown(wire)
	return m
}

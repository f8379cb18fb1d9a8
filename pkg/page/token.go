package page

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	tokenVersion = 1
	// scopeSize and macSize are truncations of SHA-256 and HMAC-SHA-256.
	scopeSize = 16
	macSize   = 16
	headSize  = 1 + scopeSize
	// maxToken bounds what is decoded at all.
	maxToken = 16 << 10
)

// Scope is what a token belongs to: it is refused in a list of another scope.
type Scope struct {
	Collection string
	// Filters are the list's filters in any spelling that is the same for the same filters; see FiltersOf.
	Filters map[string]string
	// Order is the canonical order, Order.String.
	Order string
}

// Codec makes and reads page tokens. All replicas of a service must know each other's secrets.
type Codec struct{ keys [][]byte }

// NewCodec derives the keys of the tokens from the internal secret, which may be a list: tokens are made with the first and
// read with any.
func NewCodec(secret secretbox.Secret) (*Codec, error) {
	secrets, err := secret.InternalList()
	if err != nil {
		return nil, fmt.Errorf("make page tokens: %w", err)
	}
	c := &Codec{}
	for _, s := range secrets {
		key, err := hkdf.Key(sha256.New, []byte(s.Reveal()), nil, "certctl page token v1", sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("derive page token key: %w", err)
		}
		c.keys = append(c.keys, key)
	}
	return c, nil
}

// Encode returns the token of the page after the cursor, for page_token: version, scope, cursor and their HMAC, as
// base64url. It is opaque to callers, not secret: it shows the last row's keys to whoever decodes it.
func (c *Codec) Encode(s Scope, after Cursor) string {
	b := append([]byte{tokenVersion}, s.digest()...)
	b = after.encode(b)
	return base64.RawURLEncoding.EncodeToString(append(b, mac(c.keys[0], b)...))
}

// Decode returns the cursor of a token; the empty token is the beginning. A token that was altered, or that was made for
// another scope, is an Invalid error on page_token.
func (c *Codec) Decode(token string, s Scope) (Cursor, error) {
	if token == "" {
		return nil, nil
	}
	body, ok := c.verified(token)
	if !ok {
		return nil, errs.Field("page_token", "is not a token that this list gave out")
	}
	if subtle.ConstantTimeCompare(body[1:headSize], s.digest()) != 1 {
		return nil, errs.Field("page_token", "belongs to a list with other filters or another order_by; begin again without it")
	}
	cursor, err := decodeCursor(body[headSize:])
	if err != nil {
		return nil, errs.Field("page_token", "is not a token that this list gave out")
	}
	return cursor, nil
}

func (c *Codec) verified(token string) (body []byte, ok bool) {
	// Go's base64 skips line breaks; a token with one is still not the token that was given out.
	if len(token) > maxToken || strings.ContainsAny(token, "\r\n") {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < headSize+macSize || b[0] != tokenVersion {
		return nil, false
	}
	body, got := b[:len(b)-macSize], b[len(b)-macSize:]
	for _, key := range c.keys {
		if hmac.Equal(got, mac(key, body)) {
			return body, true
		}
	}
	return nil, false
}

func mac(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return h.Sum(nil)[:macSize]
}

// digest hashes the scope over length-prefixed fields, so that no two scopes are spelt alike.
func (s Scope) digest() []byte {
	h := sha256.New()
	put := func(v string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(v)))
		h.Write(n[:])
		h.Write([]byte(v))
	}
	put(s.Collection)
	put(s.Order)
	for _, name := range slices.Sorted(maps.Keys(s.Filters)) {
		put(name)
		put(s.Filters[name])
	}
	return h.Sum(nil)[:scopeSize]
}

// notFilters are the fields of list requests that may change between pages, or that the scope has in another form.
var notFilters = []protoreflect.Name{"page_size", "page_token", "order_by", "include_total"}

// FiltersOf returns the filters of a list request: everything in it except its paging fields.
func FiltersOf(req proto.Message) map[string]string {
	c := proto.Clone(req)
	m := c.ProtoReflect()
	for _, name := range notFilters {
		if f := m.Descriptor().Fields().ByName(name); f != nil {
			m.Clear(f)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(c)
	if err != nil {
		// Only text that is not UTF-8 can do this, and such a request never passes the server's decoder.
		return map[string]string{"unmarshalable": err.Error()}
	}
	return map[string]string{string(m.Descriptor().FullName()): string(b)}
}

package secretbox

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	version1 = 1
	// keySize is that of AES-256.
	keySize = 32
	idSize  = 8
	// nonceSize and tagSize are those of GCM (NIST SP 800-38D).
	nonceSize = 12
	tagSize   = 16
	headSize  = 1 + idSize
	overhead  = headSize + nonceSize + tagSize
)

var (
	// ErrUnknownKey is returned for data that was encrypted under a key which the box does not have.
	ErrUnknownKey = errors.New("encrypted under a key that is not in the key file")
	// ErrTampered is returned for data that was changed, or that belongs to another place.
	ErrTampered = errors.New("encrypted data was altered or moved")
)

// Place is where encrypted data is stored. Data moved to another place does not open.
type Place struct {
	Table  string
	Row    string
	Column string
}

// Key is an AES-256 key. It cannot be printed.
type Key struct {
	id     [idSize]byte
	secret Secret
}

// NewKey makes a key from 32 bytes.
func NewKey(raw []byte) (Key, error) {
	if len(raw) != keySize {
		return Key{}, fmt.Errorf("encryption key: %d bytes are needed, got %d", keySize, len(raw))
	}
	sum := sha256.Sum256(append([]byte("certctl secretbox key id v1\x00"), raw...))
	k := Key{secret: NewSecret(string(raw))}
	copy(k.id[:], sum[:])
	return k, nil
}

// GenerateKey makes a random key.
func GenerateKey() Key {
	raw := make([]byte, keySize)
	_, _ = rand.Read(raw) // never fails: see crypto/rand.Read
	k, _ := NewKey(raw)
	return k
}

// String tells the key's id, which shows nothing of the key.
func (k Key) String() string { return fmt.Sprintf("key %x", k.id) }

// encode is the key as a line of the key file.
func (k Key) encode() string { return base64.StdEncoding.EncodeToString([]byte(k.secret.Reveal())) }

// Box encrypts small data that is stored in the database, with AES-256-GCM. The envelope is
//
//	version (1 byte) | key id (8) | nonce (12) | ciphertext and tag
//
// and its first two fields and the place are authenticated with it. Nonces are random, so one key is good for 2^32
// envelopes (NIST SP 800-38D, section 8.3). A Box is safe for concurrent use.
type Box struct {
	first Key
	aeads map[[idSize]byte]cipher.AEAD
}

// NewBox returns a box that encrypts with the first key and decrypts with any.
func NewBox(keys ...Key) (*Box, error) {
	if len(keys) == 0 {
		return nil, errors.New("secret box: no encryption key")
	}
	b := &Box{first: keys[0], aeads: make(map[[idSize]byte]cipher.AEAD, len(keys))}
	for _, k := range keys {
		block, err := aes.NewCipher([]byte(k.secret.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("secret box: %w", err)
		}
		if b.aeads[k.id], err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("secret box: %w", err)
		}
	}
	return b, nil
}

// Seal encrypts plain for the place.
func (b *Box) Seal(plain []byte, at Place) []byte {
	out := make([]byte, headSize+nonceSize, overhead+len(plain))
	out[0] = version1
	copy(out[1:headSize], b.first.id[:])
	nonce := out[headSize:]
	_, _ = rand.Read(nonce) // never fails: see crypto/rand.Read
	return b.aeads[b.first.id].Seal(out, nonce, plain, at.additionalData(out[:headSize]))
}

// Open decrypts what Seal made for the place. It fails with ErrUnknownKey or ErrTampered; no error shows any of the data.
func (b *Box) Open(sealed []byte, at Place) ([]byte, error) {
	aead, err := b.aead(sealed)
	if err != nil {
		return nil, fmt.Errorf("open %s of %s: %w", at.Column, at.Table, err)
	}
	nonce, text := sealed[headSize:headSize+nonceSize], sealed[headSize+nonceSize:]
	plain, err := aead.Open(nil, nonce, text, at.additionalData(sealed[:headSize]))
	if err != nil {
		return nil, fmt.Errorf("open %s of %s: %w", at.Column, at.Table, ErrTampered)
	}
	return plain, nil
}

// Stale tells whether the data should be encrypted again because it is not under the first key.
func (b *Box) Stale(sealed []byte) bool {
	return len(sealed) < overhead || sealed[0] != version1 || [idSize]byte(sealed[1:headSize]) != b.first.id
}

// Keys tells how many keys the box has.
func (b *Box) Keys() int { return len(b.aeads) }

// First names the key that encrypts, as "key 0123456789abcdef".
func (b *Box) First() string { return b.first.String() }

// KeyOf names the key that data was encrypted under, in the same way.
func KeyOf(sealed []byte) string {
	if len(sealed) < overhead || sealed[0] != version1 {
		return "no key"
	}
	return Key{id: [idSize]byte(sealed[1:headSize])}.String()
}

func (b *Box) aead(sealed []byte) (cipher.AEAD, error) {
	if len(sealed) < overhead || sealed[0] != version1 {
		return nil, ErrTampered
	}
	aead, ok := b.aeads[[idSize]byte(sealed[1:headSize])]
	if !ok {
		return nil, ErrUnknownKey
	}
	return aead, nil
}

// additionalData binds the head and the place. Each part has its length before it, so that no two places look alike.
func (p Place) additionalData(head []byte) []byte {
	out := append([]byte(nil), head...)
	for _, part := range []string{p.Table, p.Row, p.Column} {
		out = binary.BigEndian.AppendUint64(out, uint64(len(part)))
		out = append(out, part...)
	}
	return out
}

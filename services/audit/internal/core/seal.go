package core

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Kinds of anchors: a checkpoint's MAC does not fit as a head's, so that an old checkpoint cannot pose as the end.
const (
	KindHead       = "head"
	KindCheckpoint = "checkpoint"
)

// keyIDSize is that of a key's id, bytes.
const keyIDSize = 8

// Seal is a MAC over an anchor, with the id of the key that it was made with.
type Seal struct{ KeyID, MAC []byte }

// Sealer makes and checks the MACs of anchors.
type Sealer struct{ keys []sealKey }

type sealKey struct{ id, key []byte }

// NewSealer takes keys that are kept outside of the database. There are several while one is being replaced: each anchor is
// then sealed with all, and believed when one fits, so that none of them is missed when it is dropped.
func NewSealer(keys ...[]byte) Sealer {
	var s Sealer
	for _, key := range keys {
		m := hmac.New(sha256.New, key)
		m.Write([]byte("key id"))
		s.keys = append(s.keys, sealKey{id: m.Sum(nil)[:keyIDSize], key: key})
	}
	return s
}

// Keys are how many there are.
func (s Sealer) Keys() int { return len(s.keys) }

// Seal sets the anchor's MACs: HMAC-SHA-256 over kind, sequence and hash, with each key.
func (s Sealer) Seal(kind string, a Anchor) Anchor {
	a.MAC, a.Seals = s.keys[0].mac(kind, a), nil
	for _, k := range s.keys {
		a.Seals = append(a.Seals, Seal{KeyID: k.id, MAC: k.mac(kind, a)})
	}
	return a
}

// Fits tells whether the anchor was sealed with one of our keys.
func (s Sealer) Fits(kind string, a Anchor) bool { return s.judge(kind, a) == sealFits }

// Complete tells whether the anchor is sealed with each of our keys.
func (s Sealer) Complete(kind string, a Anchor) bool {
	for _, k := range s.keys {
		found := false
		for _, seal := range a.Seals {
			found = found || same(seal.KeyID, k.id) && same(seal.MAC, k.mac(kind, a))
		}
		if !found {
			return false
		}
	}
	return true
}

// Forged tells whether a seal says that a key of ours has made it, and did not. It cannot be made good by another.
func (s Sealer) Forged(kind string, a Anchor) bool {
	for _, k := range s.keys {
		for _, seal := range a.Seals {
			if same(seal.KeyID, k.id) && !same(seal.MAC, k.mac(kind, a)) {
				return true
			}
		}
	}
	return false
}

// verdict is what the MACs of an anchor say about it.
type verdict int

const (
	sealBroken verdict = iota
	sealFits
	// sealForeign is an anchor that none of our keys has sealed: nothing is known about it.
	sealForeign
)

func (s Sealer) judge(kind string, a Anchor) verdict {
	ours := false
	for _, k := range s.keys {
		want := k.mac(kind, a)
		if same(a.MAC, want) {
			return sealFits
		}
		for _, seal := range a.Seals {
			if same(seal.MAC, want) {
				return sealFits
			}
			ours = ours || same(seal.KeyID, k.id)
		}
	}
	if !ours && len(a.Seals) > 0 {
		return sealForeign
	}
	return sealBroken
}

func (k sealKey) mac(kind string, a Anchor) []byte {
	m := hmac.New(sha256.New, k.key)
	m.Write(appendField(appendNumber(appendField(nil, kind), a.Sequence), a.Hash))
	return m.Sum(nil)
}

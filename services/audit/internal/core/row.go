package core

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// Row is an event as the database hands it over: a walk over millions of them copies nothing. What it points to is good until the
// next one is read.
type Row struct {
	Sequence int64
	// Time and RecordTime are microseconds since 1970.
	Time, RecordTime                                                             int64
	ID, ActorType, ActorID, Action, ResourceType, ResourceID, Outcome, RequestID []byte
	Data, Hash, PreviousHash                                                     []byte
}

// Event is a copy of the row.
func (r *Row) Event() *Event {
	return &Event{
		Sequence: r.Sequence, ID: string(r.ID), Time: time.UnixMicro(r.Time).UTC(), RecordTime: time.UnixMicro(r.RecordTime).UTC(),
		ActorType: string(r.ActorType), ActorID: string(r.ActorID), Action: string(r.Action), ResourceType: string(r.ResourceType),
		ResourceID: string(r.ResourceID), Outcome: string(r.Outcome), RequestID: string(r.RequestID),
		Data: bytes.Clone(r.Data), Hash: bytes.Clone(r.Hash), PreviousHash: bytes.Clone(r.PreviousHash),
	}
}

// sum is Event.Sum of the same event. It writes what it hashes into b, and gives that back for the next one.
func (r *Row) sum(b []byte) ([sha256.Size]byte, []byte) {
	b = hashed(b[:0], r.PreviousHash, r.Sequence, r.ID, r.Time, r.RecordTime,
		[...][]byte{r.ActorType, r.ActorID, r.Action, r.ResourceType, r.ResourceID, r.Outcome, r.RequestID}, r.Data)
	return sha256.Sum256(b), b
}

// Sum is the event's hash: SHA-256 over the previous hash and every field, each with its length before it, so that no
// two different events give the same bytes.
func (e *Event) Sum() []byte {
	sum := sha256.Sum256(hashed(nil, e.PreviousHash, e.Sequence, e.ID, e.Time.UnixMicro(), e.RecordTime.UnixMicro(),
		[...]string{e.ActorType, e.ActorID, e.Action, e.ResourceType, e.ResourceID, e.Outcome, e.RequestID}, e.Data))
	return sum[:]
}

// hashed appends what the hash of an event is over.
func hashed[T string | []byte](b, previous []byte, sequence int64, id T, occurred, recorded int64, texts [7]T, data []byte) []byte {
	b = appendField(b, previous)
	b = appendNumber(b, sequence)
	b = appendField(b, id)
	b = appendNumber(b, occurred)
	b = appendNumber(b, recorded)
	for _, s := range texts {
		b = appendField(b, s)
	}
	return appendField(b, data)
}

func appendField[T string | []byte](b []byte, v T) []byte {
	return append(appendNumber(b, int64(len(v))), v...)
}

func appendNumber(b []byte, n int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(n)) }

package globalsign

import (
	"math/big"
	"net/url"
	"path"
	"regexp"
	"sync"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// serialForm is how the CA writes serial numbers: hex of at most 20 octets.
var serialForm = regexp.MustCompile(`^[0-9A-Fa-f]{1,40}$`)

// refOf makes the reference of a certificate by its serial number as the CA writes it.
func refOf(serial string) (issuer.Ref, bool) {
	if !serialForm.MatchString(serial) {
		return nil, false
	}
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok || issuer.CheckSerial(n) != nil {
		return nil, false
	}
	return issuer.Ref{refCertificate: serial, refSerial: issuer.FormatSerial(n)}, true
}

// lastSegment gives the end of the path of a Location, which may be a whole URL or a path.
func lastSegment(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	return path.Base(u.Path)
}

// maxSeen bounds what is remembered of certificates that were compared: about 2 MB.
const maxSeen = 20_000

// seenKeys remembers the keys of certificates by serial number, so that none is fetched again for the next order that is
// looked up. Certificates never change.
type seenKeys struct {
	mu    sync.Mutex
	keys  map[string][32]byte
	order []string // oldest first, from next on
	next  int
}

func newSeenKeys() *seenKeys { return &seenKeys{keys: map[string][32]byte{}} }

func (s *seenKeys) get(serial string) ([32]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.keys[serial]
	return id, ok
}

func (s *seenKeys) put(serial string, id [32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.keys[serial]; ok {
		return
	}
	if len(s.order) < maxSeen {
		s.order = append(s.order, serial)
	} else {
		delete(s.keys, s.order[s.next])
		s.order[s.next] = serial
		s.next = (s.next + 1) % maxSeen
	}
	s.keys[serial] = id
}

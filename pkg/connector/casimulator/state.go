package casimulator

import (
	"bufio"
	"crypto/sha1" //nolint:gosec // a thumbprint is SHA-1 by name, and guards nothing
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/certctl/certctl/pkg/disk"
)

// firstID is where the numbers of orders and certificates begin. All CAs share one sequence, so that a number names
// one thing.
const firstID = 100_000_001

// errNotFound says that a CA has no such order.
var errNotFound = errors.New("no such order")

// store has all orders in memory and a journal on disk: one line of JSON for each change, which is the whole order as
// it is after it. A published order is never changed; a change publishes another one.
type store struct {
	sync bool

	mu           sync.RWMutex
	file         *os.File
	lines        int
	orders       []*order
	position     map[key]int // of an order in orders
	requests     map[key]int // by id of a certificate
	actions      map[key]int // by id of an action
	thumbprints  map[key]int // by SHA-1 of a certificate, upper-case hexadecimal
	serials      map[key]int // by serial number, upper-case hexadecimal
	commonNames  map[key][]int
	nextSequence int64
}

// key is a name within a CA.
type key struct{ ca, name string }

func openStore(path string, sync bool) (*store, error) {
	s := &store{
		sync: sync, position: map[key]int{}, requests: map[key]int{}, actions: map[key]int{}, serials: map[key]int{},
		thumbprints: map[key]int{}, commonNames: map[key][]int{}, nextSequence: firstID,
	}
	if err := s.replay(path); err != nil {
		return nil, err
	}
	if s.lines > 2*len(s.orders)+1000 {
		if err := s.compact(path); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	s.file = f
	return s, nil
}

// replay reads the journal. What follows the last line break is of a process that was killed while it wrote: nobody
// got an answer for it, so it is cut off.
func (s *store) replay(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, 1<<20)
	var whole int64
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			return fmt.Errorf("read journal %s, line %d: %w", path, s.lines+1, err)
		}
		whole += int64(len(line))
		s.publish(&o)
	}
	if err := f.Truncate(whole); err != nil {
		return fmt.Errorf("cut torn line off the journal: %w", err)
	}
	return nil
}

// compact replaces the journal by one with a line for each order.
func (s *store) compact(path string) error {
	var all []byte
	for _, o := range s.orders {
		line, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("compact journal: %w", err)
		}
		all = append(append(all, line...), '\n')
	}
	if err := disk.Write(path, all, 0o600); err != nil {
		return fmt.Errorf("compact journal: %w", err)
	}
	s.lines = len(s.orders)
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := errors.Join(s.file.Sync(), s.file.Close())
	s.file = nil
	if err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return nil
}

// id gives the next number.
func (s *store) id() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextSequence++
	return strconv.FormatInt(s.nextSequence-1, 10)
}

// add writes new orders down and publishes them.
func (s *store) add(orders ...*order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range orders {
		if _, ok := s.position[key{o.CA, o.ID}]; ok {
			return fmt.Errorf("add order %s %s: it is there already", o.CA, o.ID)
		}
	}
	return s.write(orders...)
}

// update changes one order. What f gets is a copy that may be changed; its error leaves the order as it was.
func (s *store) update(ca, id string, f func(*order) error) (*order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.position[key{ca, id}]
	if !ok {
		return nil, errNotFound
	}
	o := s.orders[at].clone()
	if err := f(o); err != nil {
		return nil, err
	}
	return o, s.write(o)
}

func (s *store) write(orders ...*order) error {
	var lines []byte
	for _, o := range orders {
		line, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("write journal: %w", err)
		}
		lines = append(append(lines, line...), '\n')
	}
	if s.file == nil {
		return errors.New("write journal: the simulator is closed")
	}
	if _, err := s.file.Write(lines); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if s.sync {
		if err := s.file.Sync(); err != nil {
			return fmt.Errorf("write journal: %w", err)
		}
	}
	for _, o := range orders {
		s.publish(o)
	}
	return nil
}

func (s *store) publish(o *order) {
	s.lines++
	at, known := s.position[key{o.CA, o.ID}]
	if known {
		s.orders[at] = o
	} else {
		at = len(s.orders)
		s.orders = append(s.orders, o)
		s.position[key{o.CA, o.ID}] = at
	}
	s.skip(o.ID)
	for i := range o.Requests {
		r := &o.Requests[i]
		s.requests[key{o.CA, r.ID}] = at
		s.serials[key{o.CA, r.Serial}] = at
		if r.DER != nil {
			s.thumbprints[key{o.CA, thumbprint(r.DER)}] = at
		}
		s.skip(r.ID)
		name := key{o.CA, r.CommonName}
		if !slices.Contains(lastOf(s.commonNames[name], 4), at) {
			s.commonNames[name] = append(s.commonNames[name], at)
		}
	}
	for _, a := range o.Actions {
		s.actions[key{o.CA, a.ID}] = at
		s.skip(a.ID)
	}
}

// lastOf bounds the search for a position that is there already: it can only be missed when an order was changed
// after others with the same name came, and then stands in the index twice, which named removes.
func lastOf(positions []int, n int) []int { return positions[max(0, len(positions)-n):] }

// thumbprint is what Windows and some CAs call the SHA-1 of a certificate.
func thumbprint(der []byte) string {
	return fmt.Sprintf("%X", sha1.Sum(der)) //nolint:gosec // it names a certificate, and guards nothing
}

// skip makes sure that a number is not given again.
func (s *store) skip(id string) {
	if n, err := strconv.ParseInt(id, 10, 64); err == nil && n >= s.nextSequence && n < 1<<53 {
		s.nextSequence = n + 1
	}
}

// byID finds an order by its own number.
func (s *store) byID(ca, id string) (*order, bool) { return s.find(s.position, key{ca, id}) }

// byRequest finds an order by the number of one of its certificates.
func (s *store) byRequest(ca, id string) (*order, bool) { return s.find(s.requests, key{ca, id}) }

// bySerial finds an order by the serial number of one of its certificates.
func (s *store) bySerial(ca, serial string) (*order, bool) { return s.find(s.serials, key{ca, serial}) }

// byAction finds an order by the number of one of its actions.
func (s *store) byAction(ca, id string) (*order, bool) { return s.find(s.actions, key{ca, id}) }

// byThumbprint finds an order by that of one of its certificates.
func (s *store) byThumbprint(ca, sha1 string) (*order, bool) {
	return s.find(s.thumbprints, key{ca, sha1})
}

func (s *store) find(index map[key]int, k key) (*order, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := index[k]
	if !ok {
		return nil, false
	}
	return s.orders[at], true
}

// named are the orders with a common name, oldest first.
func (s *store) named(ca, commonName string) []*order {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at := slices.Clone(s.commonNames[key{ca, commonName}])
	slices.Sort(at)
	var out []*order
	for _, i := range slices.Compact(at) {
		out = append(out, s.orders[i])
	}
	return out
}

// all are the orders of a CA, or of every one, oldest first.
func (s *store) all(ca string) []*order {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*order, 0, len(s.orders))
	for _, o := range s.orders {
		if ca == "" || o.CA == ca {
			out = append(out, o)
		}
	}
	return out
}

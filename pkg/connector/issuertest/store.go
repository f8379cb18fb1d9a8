package issuertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Kinds of counts; the key is the kind followed by the OrderID.
const (
	submits = "submit/"
	polls   = "poll/"
)

// fakeState is what a fake CA remembers. Material is shown in the file: it is the key of a CA for tests.
type fakeState struct {
	Material string
	Orders   []*fakeOrder
	Counts   map[string]int

	ca local.CA
}

// fakeStore keeps a state in memory, and in a file if there is a path. Each use of a file holds a lock and reads the
// file anew, so that several processes are one CA.
type fakeStore struct {
	path string
	ca   local.CA

	mu    sync.Mutex
	state fakeState
}

func openFakeStore(path string, now time.Time) (*fakeStore, error) {
	st := &fakeStore{path: path}
	err := st.locked(func() error {
		if err := st.read(); err != nil {
			return err
		}
		if st.state.Material == "" {
			return st.generate(now)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m, err := local.DecodeMaterial(secretbox.NewSecret(st.state.Material))
	if err != nil {
		return nil, err
	}
	st.ca, err = m.CA(now)
	return st, err
}

func (st *fakeStore) generate(now time.Time) error {
	m, err := local.Generate(local.Subject{CommonName: "Fake CA"}, now)
	if err != nil {
		return err
	}
	secret, err := m.Encode()
	if err != nil {
		return err
	}
	st.state = fakeState{Material: secret.Reveal(), Counts: map[string]int{}}
	return st.write()
}

// view runs f on the newest state.
func (st *fakeStore) view(f func(*fakeState) error) error {
	return st.locked(func() error {
		if err := st.read(); err != nil {
			return err
		}
		return f(&st.state)
	})
}

// update runs f on the newest state and writes it, also when f fails: a refused call counts.
func (st *fakeStore) update(f func(*fakeState) error) error {
	return st.locked(func() error {
		if err := st.read(); err != nil {
			return err
		}
		err := f(&st.state)
		return errors.Join(err, st.write())
	})
}

func (st *fakeStore) count(kind, orderID string) (n int, err error) {
	err = st.view(func(s *fakeState) error {
		n = s.Counts[kind+orderID]
		return nil
	})
	return n, err
}

func (st *fakeStore) locked(f func() error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.path == "" {
		return f()
	}
	unlock, err := lockFile(st.path + ".lock")
	if err != nil {
		return fmt.Errorf("lock fake CA: %w", err)
	}
	return errors.Join(f(), unlock())
}

func (st *fakeStore) read() error {
	defer func() { st.state.ca = st.ca }()
	if st.path == "" {
		return nil
	}
	text, err := os.ReadFile(st.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read fake CA: %w", err)
	}
	st.state = fakeState{}
	return json.Unmarshal(text, &st.state)
}

// write replaces the file as a whole, so that a killed process leaves the state before or after.
func (st *fakeStore) write() error {
	if st.path == "" {
		return nil
	}
	text, err := json.Marshal(st.state)
	if err != nil {
		return err
	}
	next := st.path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return fmt.Errorf("write fake CA: %w", err)
	}
	return os.Rename(next, st.path)
}

// of gives the orders of an OrderID.
func (s *fakeState) of(orderID string) []*fakeOrder {
	var out []*fakeOrder
	for _, o := range s.Orders {
		if o.OrderID == orderID {
			out = append(out, o)
		}
	}
	return out
}

func (s *fakeState) byRef(ref issuer.Ref) (*fakeOrder, error) {
	n, err := strconv.Atoi(ref[refOrder])
	if err != nil || n < 1 || n > len(s.Orders) {
		return nil, issuer.Permanent(issuer.ReasonOrderNotFound, "the fake CA has no order %q", ref[refOrder])
	}
	return s.Orders[n-1], nil
}

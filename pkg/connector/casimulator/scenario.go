package casimulator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxScenario bounds a scenario in bytes.
const maxScenario = 1 << 20

// Scenario is how the CAs behave.
type Scenario struct {
	// Latency is from the acceptance of an order, or its approval, to the certificate.
	Latency time.Duration `yaml:"latency"`
	// Approval says whether a human has to approve each order.
	Approval Approval `yaml:"approval"`
	// Clock is by how much the CAs' clock is off.
	Clock time.Duration `yaml:"clock"`
	// Unlimited takes off the rate limits that CAs publish, for tests of our own speed.
	Unlimited bool `yaml:"unlimited"`
	// Seed is of the random numbers behind Fault.Probability.
	Seed   uint64  `yaml:"seed"`
	Faults []Fault `yaml:"faults"`
	// GlobalSign says what is particular to the account there.
	GlobalSign GlobalSignAccount `yaml:"globalsign"`
}

// Approval is whether a human at the CA approves each order, and after what time by himself.
type Approval struct {
	Needed bool
	// After is when it happens by itself; zero is never.
	After time.Duration
}

// UnmarshalYAML reads none, manual, or a duration.
func (a *Approval) UnmarshalYAML(n *yaml.Node) error {
	var text string
	if err := n.Decode(&text); err != nil {
		return fmt.Errorf("line %d: approval: %w", n.Line, err)
	}
	switch text {
	case "", "none":
		*a = Approval{}
		return nil
	case "manual":
		*a = Approval{Needed: true}
		return nil
	}
	after, err := time.ParseDuration(text)
	if err != nil || after <= 0 {
		return fmt.Errorf("line %d: approval: %q is neither none, manual, nor a duration such as 30s", n.Line, text)
	}
	*a = Approval{Needed: true, After: after}
	return nil
}

// ReadScenario reads a scenario from a file.
func ReadScenario(path string) (Scenario, error) {
	f, err := os.Open(path)
	if err != nil {
		return Scenario{}, fmt.Errorf("read scenario: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxScenario+1))
	if err != nil {
		return Scenario{}, fmt.Errorf("read scenario: %w", err)
	}
	s, err := ParseScenario(text)
	if err != nil {
		return Scenario{}, fmt.Errorf("read scenario %s: %w", path, err)
	}
	return s, nil
}

// ParseScenario reads a scenario, YAML or JSON. Keys that it does not know are errors, with their line.
func ParseScenario(text []byte) (Scenario, error) {
	var s Scenario
	if err := strictYAML(text, &s); err != nil {
		return Scenario{}, err
	}
	return s, s.validate()
}

// parseFaults reads a list of faults as a scenario has it.
func parseFaults(text []byte) ([]Fault, error) {
	var faults []Fault
	if err := strictYAML(text, &faults); err != nil {
		return nil, err
	}
	return faults, Scenario{Faults: faults}.validate()
}

func strictYAML(text []byte, into any) error {
	if len(text) > maxScenario {
		return fmt.Errorf("it is longer than %d bytes", maxScenario)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one document in it")
	}
	return nil
}

func (s Scenario) validate() error {
	if s.Latency < 0 {
		return errors.New("latency is negative")
	}
	for i, f := range s.Faults {
		if err := f.validate(); err != nil {
			return fmt.Errorf("faults, number %d: %w", i+1, err)
		}
	}
	return s.GlobalSign.validate()
}

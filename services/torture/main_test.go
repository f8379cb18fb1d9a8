package torture_test

import (
	"flag"
	"io"
	"log" //nolint:depguard // net/http tells of a reply that came twice over it, whole, and cannot be told not to
	"os"
	"testing"
)

// TestMain runs the tests or, in a process that a test has started, what that one is for.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	if errand := os.Getenv(errandVariable); errand != "" {
		os.Exit(runErrand(errand))
	}
	// These tests wait for processes, CAs and time-outs far more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		os.Exit(complain(err))
	}
	os.Exit(m.Run())
}

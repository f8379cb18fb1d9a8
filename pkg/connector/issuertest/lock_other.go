//go:build !unix

package issuertest

import "errors"

// lockFile has no lock to offer here.
func lockFile(string) (unlock func() error, err error) {
	return nil, errors.New("a fake CA on disk needs file locks")
}

package issuer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
)

// serialBits is the size of new serial numbers; RFC 5280, section 4.1.2.2, allows up to 159 bits, the CA/Browser
// Forum wants at least 64 from a random source.
const serialBits = 128

// maxSerialBits is 20 octets without the sign bit.
const maxSerialBits = 20*8 - 1

// NewSerialNumber gives a positive random serial number of 128 bits. Two of them never meet in practice, and a unique
// index over the stored intent makes sure.
func NewSerialNumber() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), serialBits)
	for {
		n, err := rand.Int(rand.Reader, limit)
		if err != nil {
			return nil, fmt.Errorf("draw serial number: %w", err)
		}
		if n.Sign() > 0 {
			return n, nil
		}
	}
}

// FormatSerial gives the one text form of serial numbers: lower-case hex without leading zeros.
func FormatSerial(n *big.Int) string { return n.Text(16) }

// ParseSerial reads the form of FormatSerial and no other, as decimal numbers look the same.
func ParseSerial(s string) (*big.Int, error) {
	n, ok := new(big.Int).SetString(s, 16)
	if !ok || FormatSerial(n) != s {
		return nil, errors.New("a serial number is lower-case hex without leading zeros")
	}
	return n, CheckSerial(n)
}

// CheckSerial holds a serial number against RFC 5280, section 4.1.2.2: positive, at most 20 octets.
func CheckSerial(n *big.Int) error {
	if n == nil || n.Sign() <= 0 || n.BitLen() > maxSerialBits {
		return errors.New("a serial number is positive and has at most 20 octets")
	}
	return nil
}

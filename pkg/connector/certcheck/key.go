package certcheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// KeyAlgorithm is the algorithm and size of a key, by its name in the API.
type KeyAlgorithm string

// The key algorithms that certctl knows.
const (
	ECDSAP256 KeyAlgorithm = "ECDSA_P256"
	ECDSAP384 KeyAlgorithm = "ECDSA_P384"
	RSA2048   KeyAlgorithm = "RSA_2048"
	RSA3072   KeyAlgorithm = "RSA_3072"
	RSA4096   KeyAlgorithm = "RSA_4096"
	Ed25519   KeyAlgorithm = "ED25519"
)

// KeyAlgorithms gives all key algorithms.
func KeyAlgorithms() []KeyAlgorithm {
	return []KeyAlgorithm{ECDSAP256, ECDSAP384, RSA2048, RSA3072, RSA4096, Ed25519}
}

// Exponents outside of this are weak or break clients (NIST SP 800-89, section 5.3.3; crypto/tls of several
// stacks reads 32 bits).
const (
	minExponent = 65537
	maxExponent = 1<<31 - 1
)

// CheckKey tells which algorithm a public key is of. It refuses keys of other algorithms and sizes, RSA keys with
// an unusable exponent or a modulus with a small factor, and EC points that are not on their curve.
func CheckKey(pub crypto.PublicKey) (KeyAlgorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return checkEC(k)
	case *rsa.PublicKey:
		return checkRSA(k)
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", errors.New("the Ed25519 key has the wrong size")
		}
		return Ed25519, nil
	}
	return "", errors.New("the key is of an algorithm that is not supported")
}

// allowed tells whether algorithm is one of a list; an empty list allows all.
func allowed(algorithm KeyAlgorithm, list []KeyAlgorithm) error {
	if len(list) == 0 || slices.Contains(list, algorithm) {
		return nil
	}
	return fmt.Errorf("the key is %s, allowed is %v", algorithm, list)
}

func checkEC(k *ecdsa.PublicKey) (KeyAlgorithm, error) {
	if _, err := k.ECDH(); err != nil {
		return "", errors.New("the EC key is no point on a supported curve")
	}
	switch k.Curve {
	case elliptic.P256():
		return ECDSAP256, nil
	case elliptic.P384():
		return ECDSAP384, nil
	}
	return "", fmt.Errorf("curve %s is not supported: use P-256 or P-384", k.Curve.Params().Name)
}

func checkRSA(k *rsa.PublicKey) (KeyAlgorithm, error) {
	if k.E < minExponent || k.E > maxExponent || k.E%2 == 0 {
		return "", fmt.Errorf("the RSA exponent %d is not usable: use %d", k.E, minExponent)
	}
	bySize := map[int]KeyAlgorithm{2048: RSA2048, 3072: RSA3072, 4096: RSA4096}
	algorithm, ok := bySize[k.N.BitLen()]
	if !ok {
		return "", fmt.Errorf("an RSA key of %d bits is not supported: use 2048, 3072 or 4096", k.N.BitLen())
	}
	if hasSmallFactor(k.N) {
		return "", errors.New("the RSA modulus has a small factor: the key is broken")
	}
	return algorithm, nil
}

// hasSmallFactor does the trial division of NIST SP 800-89, section 5.3.3: by all primes below 752, as one gcd.
func hasSmallFactor(n *big.Int) bool {
	product := big.NewInt(1)
	for p := int64(2); p < 752; p++ {
		if q := big.NewInt(p); q.ProbablyPrime(0) {
			product.Mul(product, q)
		}
	}
	return new(big.Int).GCD(nil, nil, product, n).Cmp(big.NewInt(1)) != 0
}

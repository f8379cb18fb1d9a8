package secretbox

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/certctl/certctl/pkg/disk"
)

// maxKeyFile bounds what is read of a key file.
const maxKeyFile = 64 << 10

const keyFileHead = `# certctl: keys for secrets at rest, AES-256 in base64, one on a line.
# The first encrypts, all decrypt. To replace it, see "Secrets and their rotation" in docs/operate.md. Without this file the secrets are lost.
`

// ParseKeys reads keys, one base64 text of 32 bytes on a line, or several with commas between; empty lines and lines that
// begin with # do not count.
// Errors give the number of the line and nothing of its content.
func ParseKeys(text Secret) ([]Key, error) {
	var keys []Key
	lines := bufio.NewScanner(strings.NewReader(text.Reveal()))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for item := range strings.SplitSeq(line, ",") {
			k, err := parseKey(strings.TrimSpace(item))
			if err != nil {
				return nil, fmt.Errorf("encryption keys, line %d: %w", n, err)
			}
			keys = append(keys, k)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	if len(keys) == 0 {
		return nil, errors.New("encryption keys: there are none")
	}
	return keys, nil
}

func parseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return Key{}, errors.New("not base64") // the cause would show a part of the key
	}
	return NewKey(raw)
}

// LoadKeys reads a key file. A file that others than its owner may read or write is refused.
func LoadKeys(path string) ([]Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("encryption keys: %s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("encryption keys: %s has mode %04o; only its owner may read it: chmod 600 %s", path, mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("encryption keys: %s is larger than %d bytes", path, maxKeyFile)
	}
	keys, err := ParseKeys(NewSecret(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// LoadOrCreateKeys reads the key file, or makes it with one random key when there is none. The file appears whole and on
// disk or not at all, and of two processes that start at once one makes it and both use it.
func LoadOrCreateKeys(path string) ([]Key, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createKeyFile(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create encryption key: %w", err)
		}
	}
	return LoadKeys(path)
}

func createKeyFile(path string) error {
	return disk.Create(path, []byte(keyFileHead+GenerateKey().encode()+"\n"), 0o600)
}

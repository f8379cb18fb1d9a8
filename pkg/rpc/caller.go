package rpc

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/rpcctx"
)

// maxCallerSize bounds an encoded caller: an id is at most a name or an agent id.
const maxCallerSize = 1024

// errManyValues refuses metadata that must be there once: which of several counts must not be a matter of luck.
var errManyValues = errors.New("more than one value")

// encodeCaller writes a caller for metadata.
func encodeCaller(c rpcctx.Caller) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode caller: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// callerFromMetadata reads a caller; ok is false when the key is not there.
func callerFromMetadata(md metadata.MD, key string) (c rpcctx.Caller, ok bool, err error) {
	value, ok, err := single(md, key)
	if err != nil || !ok {
		return rpcctx.Caller{}, false, err
	}
	if len(value) > maxCallerSize {
		return rpcctx.Caller{}, false, fmt.Errorf("%s: %d bytes are too many", key, len(value))
	}
	b, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return rpcctx.Caller{}, false, fmt.Errorf("%s: %w", key, err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return rpcctx.Caller{}, false, fmt.Errorf("%s: %w", key, err)
	}
	return c, true, nil
}

// single gives the value of a key that may be there at most once.
func single(md metadata.MD, key string) (value string, ok bool, err error) {
	switch values := md.Get(key); len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	default:
		return "", false, fmt.Errorf("%s: %w", key, errManyValues)
	}
}

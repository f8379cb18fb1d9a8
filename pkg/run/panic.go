package run

import (
	"fmt"
	"runtime/debug"
)

// PanicError is a recovered panic. Its text holds the value only: the stack goes into a log field of its own.
type PanicError struct {
	Value any
	Stack []byte
}

// Error gives the value of the panic.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap gives the value when it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// NewPanicError keeps what recover gave, with the stack of the calling goroutine; it must be called from the
// deferred function, while the stack is still that of the panic.
func NewPanicError(value any) *PanicError { return &PanicError{Value: value, Stack: debug.Stack()} }

// Safely calls f and turns a panic into a *PanicError.
func Safely(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = NewPanicError(v)
		}
	}()
	return f()
}

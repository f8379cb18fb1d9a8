//go:build !linux

package pgserver

import "syscall"

// dieWithParent does nothing: the next start ends what was left behind.
func dieWithParent(*syscall.SysProcAttr) {}

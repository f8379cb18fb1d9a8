package pgserver

import "syscall"

// dieWithParent asks the kernel for a fast shutdown of Postgres at the end of the thread that starts it.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }

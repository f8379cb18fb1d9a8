package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startWithClock starts a program whose clock is off, and always will be: nothing of the product knows of it.
//
// The program is held at its first instruction. There, the kernel's code that tells the time without a system call (the vDSO, of which
// each process has a copy of its own once it is written to) is replaced by one that asks the kernel and adds the difference to the
// time of day. The monotonic clock stays as it is.
func startWithClock(cmd *exec.Cmd, off time.Duration) error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return errors.ErrUnsupported
	}
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return fmt.Errorf("wait for the first instruction: %w", err)
	}
	err := turnClock(pid, off)
	return errors.Join(err, syscall.PtraceDetach(pid))
}

// clockTurns tells why clocks cannot be turned here: nil if they can. It asks a program that tells the time.
func clockTurns(ctx context.Context, off time.Duration) error {
	date := exec.CommandContext(ctx, "date", "+%s")
	var out bytes.Buffer
	date.Stdout, date.SysProcAttr = &out, &syscall.SysProcAttr{}
	if err := startWithClock(date, off); err != nil {
		return err
	}
	if err := date.Wait(); err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	if err != nil {
		return err
	}
	if wrong := time.Until(time.Unix(seconds, 0)) - off; wrong.Abs() > time.Minute {
		return fmt.Errorf("date is off by %s more than it should be", wrong)
	}
	return nil
}

// clockCode is clock_gettime(2) for amd64, with a number of seconds added to CLOCK_REALTIME.
func clockCode(off time.Duration) []byte {
	code := []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228 (clock_gettime)
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi (0: CLOCK_REALTIME)
		0x75, 0x07, // jne to the end
		0x48, 0x81, 0x06, // add qword [rsi], what follows
	}
	code = binary.LittleEndian.AppendUint32(code, uint32(int32(off/time.Second)))
	return append(code, 0xc3) // ret
}

func turnClock(pid int, off time.Duration) error {
	low, high, err := vdso(pid)
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	image := make([]byte, high-low)
	if _, err := memory.ReadAt(image, low); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	program, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := program.DynamicSymbols()
	if err != nil {
		return err
	}
	code := clockCode(off)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(code)) {
			_, err = memory.WriteAt(code, low+int64(s.Value))
			return err
		}
	}
	return errors.New("the vDSO has no clock_gettime")
}

// vdso finds where the kernel's code is in a process.
func vdso(pid int) (low, high int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if !strings.HasSuffix(lines.Text(), "[vdso]") {
			continue
		}
		from, to, _ := strings.Cut(strings.Fields(lines.Text())[0], "-")
		low, err = strconv.ParseInt(from, 16, 64)
		if err != nil {
			return 0, 0, err
		}
		high, err = strconv.ParseInt(to, 16, 64)
		return low, high, err
	}
	return 0, 0, errors.Join(lines.Err(), fmt.Errorf("process %d has no vDSO: %w", pid, io.EOF))
}

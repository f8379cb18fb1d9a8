package target

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
)

// maxGreeting bounds what a server may say before TLS, in bytes.
const maxGreeting = 64 << 10

var (
	errNotOffered = errors.New("the server does not offer TLS")
	errEarlyBytes = errors.New("the server sent bytes between its consent and the handshake")
)

// dialogue is the part of a connection before TLS.
type dialogue struct {
	conn net.Conn
	*textproto.Reader
}

func (d dialogue) send(line string) error {
	_, err := io.WriteString(d.conn, line+"\r\n")
	return err
}

// upgrades gives the protocols that begin in the clear.
func upgrades() map[string]func(dialogue) error {
	return map[string]func(dialogue) error{"smtp": smtp, "imap": imap, "pop3": pop3, "postgres": postgres}
}

// startTLS brings a connection to where the handshake begins. Bytes that came early are an error: they were not protected and
// would count as if they had been.
func startTLS(conn net.Conn, protocol string) error {
	upgrade, ok := upgrades()[protocol]
	if !ok {
		return fmt.Errorf("unknown protocol %q", protocol)
	}
	buffered := bufio.NewReader(io.LimitReader(conn, maxGreeting))
	err := upgrade(dialogue{conn: conn, Reader: textproto.NewReader(buffered)})
	if err == nil && buffered.Buffered() > 0 {
		return errEarlyBytes
	}
	return err
}

// smtp follows RFC 3207.
func smtp(d dialogue) error {
	_, _, err := d.ReadResponse(220)
	if err != nil {
		return err
	}
	err = d.send("EHLO certctl.invalid")
	if err != nil {
		return err
	}
	_, offer, err := d.ReadResponse(250)
	if err != nil {
		return err
	}
	if !strings.Contains(strings.ToUpper("\n"+offer+"\n"), "\nSTARTTLS\n") {
		return errNotOffered
	}
	err = d.send("STARTTLS")
	if err != nil {
		return err
	}
	_, _, err = d.ReadResponse(220)
	return err
}

// imap follows RFC 9051, section 6.2.1.
func imap(d dialogue) error {
	err := d.expect("* OK")
	if err != nil {
		return err
	}
	err = d.send("a1 STARTTLS")
	if err != nil {
		return err
	}
	for {
		line, err := d.ReadLine()
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "* ") {
			continue
		}
		if strings.HasPrefix(strings.ToUpper(line), "A1 OK") {
			return nil
		}
		return errNotOffered
	}
}

// pop3 follows RFC 2595, section 4.
func pop3(d dialogue) error {
	err := d.expect("+OK")
	if err != nil {
		return err
	}
	err = d.send("STLS")
	if err != nil {
		return err
	}
	return d.expect("+OK")
}

func (d dialogue) expect(prefix string) error {
	line, err := d.ReadLine()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(strings.ToUpper(line), prefix) {
		return errNotOffered
	}
	return nil
}

// postgres sends the SSLRequest message of PostgreSQL's protocol 3; the answer is the byte S or N.
func postgres(d dialogue) error {
	request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103)
	_, err := d.conn.Write(request)
	if err != nil {
		return err
	}
	answer, err := d.R.ReadByte()
	if err != nil {
		return err
	}
	if answer != 'S' {
		return errNotOffered
	}
	return nil
}

package nginx

import (
	"errors"
	"strings"
)

var errSyntax = errors.New("not an nginx configuration: unexpected end, or braces that do not match")

// token is one word of a configuration: its value, and where it stands in the text with its quotes.
type token struct {
	value      string
	start, end int
}

// directive is a name with its arguments; depth is the number of blocks around it.
type directive struct {
	words []token
	depth int
}

func (d directive) name() string     { return d.words[0].value }
func (d directive) args() []token    { return d.words[1:] }
func (d directive) is(n string) bool { return d.name() == n && len(d.args()) > 0 }

// lexer splits a configuration into directives by the rules of nginx's ngx_conf_read_token.
type lexer struct {
	text  string
	pos   int
	depth int
	words []token
	list  []directive
}

func parse(text string) ([]directive, error) {
	l := &lexer{text: text}
	for l.pos < len(l.text) {
		err := l.next()
		if err != nil {
			return nil, err
		}
	}
	if l.depth != 0 || len(l.words) != 0 {
		return nil, errSyntax
	}
	return l.list, nil
}

func (l *lexer) next() error {
	switch c := l.text[l.pos]; c {
	case ' ', '\t', '\r', '\n':
		l.pos++
	case '#':
		l.comment()
	case ';':
		l.pos++
		return l.end(0)
	case '{':
		l.pos++
		return l.open()
	case '}':
		l.pos++
		l.depth--
		if len(l.words) != 0 || l.depth < 0 {
			return errSyntax
		}
	case '"', '\'':
		return l.quoted(c)
	default:
		return l.plain()
	}
	return nil
}

// end closes the directive that was being read.
func (l *lexer) end(deeper int) error {
	if len(l.words) == 0 {
		return errSyntax
	}
	l.list = append(l.list, directive{words: l.words, depth: l.depth})
	l.words = nil
	l.depth += deeper
	return nil
}

// open begins a block. The body of a Lua block is Lua, not configuration: only its braces count.
func (l *lexer) open() error {
	if len(l.words) == 0 {
		return errSyntax
	}
	lua := strings.HasSuffix(l.words[0].value, "_by_lua_block")
	err := l.end(1)
	if err != nil || !lua {
		return err
	}
	for inside := 1; inside > 0; l.pos++ {
		if l.pos >= len(l.text) {
			return errSyntax
		}
		switch l.text[l.pos] {
		case '{':
			inside++
		case '}':
			inside--
		}
	}
	l.depth--
	return nil
}

func (l *lexer) comment() {
	n := strings.IndexByte(l.text[l.pos:], '\n')
	if n < 0 {
		n = len(l.text) - l.pos
	}
	l.pos += n
}

func (l *lexer) quoted(quote byte) error {
	start := l.pos
	var b strings.Builder
	for l.pos++; l.pos < len(l.text); l.pos++ {
		switch c := l.text[l.pos]; {
		case c == quote:
			l.pos++
			l.words = append(l.words, token{value: b.String(), start: start, end: l.pos})
			return nil
		case c == '\\' && l.pos+1 < len(l.text):
			l.pos++
			b.WriteString(unescape(l.text[l.pos]))
		default:
			b.WriteByte(c)
		}
	}
	return errSyntax
}

func (l *lexer) plain() error {
	start := l.pos
	var b strings.Builder
	for ; l.pos < len(l.text); l.pos++ {
		c := l.text[l.pos]
		variable := c == '{' && l.pos > start && l.text[l.pos-1] == '$'
		if strings.IndexByte(" \t\r\n;{", c) >= 0 && !variable {
			break
		}
		if c == '\\' && l.pos+1 < len(l.text) {
			l.pos++
			b.WriteString(unescape(l.text[l.pos]))
			continue
		}
		b.WriteByte(c)
	}
	l.words = append(l.words, token{value: b.String(), start: start, end: l.pos})
	return nil
}

// unescape gives what nginx makes of a backslash and c: unknown pairs stay as they are.
func unescape(c byte) string {
	switch c {
	case '"', '\'', '\\':
		return string(c)
	case 't':
		return "\t"
	case 'r':
		return "\r"
	case 'n':
		return "\n"
	default:
		return string([]byte{0x5c, c})
	}
}

// quote writes a value so that parse reads it back.
func quote(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
}

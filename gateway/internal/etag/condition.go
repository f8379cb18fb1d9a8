package etag

import "strings"

// condition is what If-None-Match says (RFC 9110, section 13.1.2).
type condition struct {
	any  bool
	tags []string // opaque tags with their quotes, without W/
}

// Match tells whether lines of If-None-Match name a tag.
func Match(lines []string, tag string) bool { return parse(lines).match(tag) }

// parse reads the lines of If-None-Match. What is no entity tag ends a line: it can match nothing.
func parse(lines []string) condition {
	var c condition
	for _, line := range lines {
		if strings.TrimSpace(line) == "*" {
			c.any = true
			continue
		}
		c.tags = append(c.tags, tagsIn(line)...)
	}
	return c
}

// tagsIn reads a list of entity tags. A comma may be inside of a tag.
func tagsIn(line string) []string {
	var tags []string
	for {
		line = strings.TrimLeft(line, " \t,")
		line = strings.TrimPrefix(line, "W/")
		if len(line) < 2 || line[0] != '"' {
			return tags
		}
		end := strings.IndexByte(line[1:], '"')
		if end < 0 {
			return tags
		}
		tags = append(tags, line[:end+2])
		line = line[end+2:]
	}
}

// match compares weakly, as If-None-Match asks: a proxy that compresses makes a strong tag weak.
func (c condition) match(tag string) bool {
	if c.any {
		return true
	}
	for _, t := range c.tags {
		if t == tag {
			return true
		}
	}
	return false
}

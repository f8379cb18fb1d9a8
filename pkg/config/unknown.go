package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// prefix is that of all our variables.
const prefix = "CERTCTL_"

// maxDistance is how many letters may differ for a name to count as a misspelling.
const maxDistance = 3

// UnknownVariable is a CERTCTL_ variable that is most likely a misspelling.
type UnknownVariable struct {
	Name    string
	Nearest string // the known name that it is like
}

// UnknownVariablesError is the error for misspelt variables; errors.As finds it in what Load returns.
type UnknownVariablesError struct{ Variables []UnknownVariable }

// Error names each variable and what was probably meant.
func (e *UnknownVariablesError) Error() string {
	lines := make([]string, 0, len(e.Variables))
	for _, v := range e.Variables {
		lines = append(lines, fmt.Sprintf("%s: no such setting; did you mean %s?", v.Name, v.Nearest))
	}
	return strings.Join(lines, "\n")
}

// serviceLink matches what Kubernetes puts into every container for a Service whose name begins with "certctl-".
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// unknown looks for CERTCTL_ variables that are no setting.
func (s source) unknown(known []Setting) (warnings []string, err error) {
	names := make(map[string]bool)
	for _, st := range known {
		for _, name := range st.names() {
			names[name] = !strings.HasPrefix(name, "--")
		}
	}
	candidates := slices.Sorted(maps.Keys(names))
	var misspelt []UnknownVariable
	for _, name := range slices.Sorted(maps.Keys(s.env)) {
		if !strings.HasPrefix(name, prefix) || names[name] || isServiceLink(name, s.env[name]) {
			continue
		}
		nearest, distance := nearestName(name, candidates)
		if nearest != "" && distance <= tolerance(name) {
			misspelt = append(misspelt, UnknownVariable{Name: name, Nearest: nearest})
			continue
		}
		warnings = append(warnings, unknownWarning(name, nearest))
	}
	if len(misspelt) > 0 {
		return warnings, &UnknownVariablesError{Variables: misspelt}
	}
	return warnings, nil
}

func unknownWarning(name, nearest string) string {
	if nearest == "" {
		return name + " is set, and there is no such setting"
	}
	return fmt.Sprintf("%s is set, and there is no such setting; the nearest is %s", name, nearest)
}

// tolerance is smaller for short names, where three letters make another word.
func tolerance(name string) int {
	return max(1, min(maxDistance, (len(name)-len(prefix))/3))
}

func nearestName(name string, candidates []string) (nearest string, distance int) {
	for _, c := range candidates {
		if strings.HasPrefix(c, "--") {
			continue
		}
		if d := levenshtein(name, c); nearest == "" || d < distance {
			nearest, distance = c, d
		}
	}
	return nearest, distance
}

// levenshtein counts the letters to insert, delete or replace to make a into b.
func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

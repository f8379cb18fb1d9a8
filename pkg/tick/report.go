package tick

import "time"

// Report is what everybody may know of a loop; the text of an error is for the log.
type Report struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Interval    string     `json:"interval"`
	Runs        uint64     `json:"runs"`
	Errors      uint64     `json:"errors"`
	OK          bool       `json:"ok"`
	LastRun     *time.Time `json:"last_run,omitempty"`
	Note        string     `json:"note,omitempty"`
}

// Reports makes the reports of states.
func Reports(states []State) []Report {
	out := make([]Report, 0, len(states))
	for _, s := range states {
		r := Report{
			Name: s.Name, Description: s.Description, Interval: s.Interval.String(), Note: s.Note,
			Runs: s.Runs, Errors: s.Errors + s.Panics, OK: s.LastError == "",
		}
		if !s.LastRun.IsZero() {
			r.LastRun = &s.LastRun
		}
		out = append(out, r)
	}
	return out
}

package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"os"
)

//go:embed page.html
var pageHTML string

// bar is a line of a chart: how much of the limit was had.
type bar struct {
	Label string
	// Width is a share of the chart, in percent.
	Width, Limit float64
	Text         string
}

// group are figures of one kind.
type group struct {
	Name    string
	Figures []Figure
	Bars    []bar
}

// writePage writes the page of a report.
func writePage(r *Report, path string) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"us": func(us float64) string { return fmt.Sprintf("%.0f", us) }, "mib": func(n int64) string { return fmt.Sprintf("%d", n>>20) },
		"ratio": func(v float64) string { return fmt.Sprintf("%.2f", v) }, "count": count, "data": dataOf,
	}).Parse(pageHTML)
	if err != nil {
		return fmt.Errorf("read the page's template: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	if err := t.Execute(f, map[string]any{"Report": r, "Groups": groups(r.Figures)}); err != nil {
		_ = f.Close()
		return fmt.Errorf("write page: %w", err)
	}
	return f.Close()
}

// count writes a number with commas.
func count(v any) string {
	text := fmt.Sprintf("%v", v)
	if f, ok := v.(float64); ok {
		text = fmt.Sprintf("%.0f", f)
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// dataOf says how much there was.
func dataOf(certificates int, also string) string {
	text := count(certificates) + " certificates"
	if also != "" {
		text += ", " + also
	}
	return text
}

// groups puts figures together by the first part of their names, in the order of the report.
func groups(figures []Figure) []group {
	var out []group
	at := map[string]int{}
	for _, f := range figures {
		name := f.Trial()
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name] = i
			out = append(out, group{Name: name})
		}
		out[i].Figures = append(out[i].Figures, f)
	}
	for i := range out {
		out[i].Bars = bars(out[i].Figures)
	}
	return out
}

// bars draws throughputs to one scale, each with its limit.
func bars(figures []Figure) []bar {
	var most float64
	for _, f := range figures {
		if f.Reading != nil && f.Reading.Rate == 0 {
			most = max(most, f.Reading.Throughput)
		}
		if f.Limit != nil {
			most = max(most, f.Limit.Throughput)
		}
	}
	var out []bar
	for _, f := range figures {
		if f.Reading == nil || f.Limit == nil {
			continue
		}
		out = append(out, bar{
			Label: f.Name + ", " + dataOf(f.Certificates, f.Also), Width: 100 * f.Reading.Throughput / most, Limit: 100 * f.Limit.Throughput / most,
			Text: fmt.Sprintf("%s/s of %s/s (%s)", count(f.Reading.Throughput), count(f.Limit.Throughput), f.Limit.What),
		})
	}
	return out
}

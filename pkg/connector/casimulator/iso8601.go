package casimulator

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// isoPeriod is the grammar of ISO 8601 durations that Entrust's APIs take, such as P1Y, P0Y3M10DT0H0M and PT90M.
const isoPeriod = `^P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?$`

// addPeriod gives start moved on by an ISO 8601 duration, or back by it when sign is -1. Years and months are those of
// the calendar, as the standard has them.
func addPeriod(start time.Time, period string, sign int) (time.Time, error) {
	m := regexp.MustCompile(isoPeriod).FindStringSubmatch(period)
	if m == nil || period == "P" || strings.HasSuffix(period, "T") {
		return time.Time{}, fmt.Errorf("%q is not an ISO 8601 duration", period)
	}
	var n [8]int
	for i := 1; i < len(m); i++ {
		if m[i] == "" {
			continue
		}
		v, err := strconv.Atoi(m[i])
		if err != nil || v > 1_000_000_000 {
			return time.Time{}, fmt.Errorf("%q is out of range", period)
		}
		n[i] = v * sign
	}
	clock := time.Duration(n[5])*time.Hour + time.Duration(n[6])*time.Minute + time.Duration(n[7])*time.Second
	return start.AddDate(n[1], n[2], 7*n[3]+n[4]).Add(clock), nil
}

// validityWindow reads a validityPeriod of CA Gateway: a duration from now, or an interval start/end, start/duration or
// duration/end.
func validityWindow(period string, now time.Time) (notBefore, notAfter time.Time, err error) {
	first, second, interval := strings.Cut(period, "/")
	switch {
	case !interval:
		notAfter, err = addPeriod(now, first, 1)
		return now, notAfter, err
	case strings.HasPrefix(first, "P"):
		if notAfter, err = isoInstant(second); err != nil {
			return notBefore, notAfter, err
		}
		notBefore, err = addPeriod(notAfter, first, -1)
		return notBefore, notAfter, err
	}
	if notBefore, err = isoInstant(first); err != nil {
		return notBefore, notAfter, err
	}
	if strings.HasPrefix(second, "P") {
		notAfter, err = addPeriod(notBefore, second, 1)
	} else {
		notAfter, err = isoInstant(second)
	}
	return notBefore, notAfter, err
}

// isoInstant reads a date and time, with or without seconds.
func isoInstant(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not an ISO 8601 date and time", s)
}

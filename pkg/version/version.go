// Package version tells which certctl this is.
package version

// Version and Commit are stamped by the build with -ldflags -X.
var (
	Version = "dev"
	Commit  = "unknown"
)

// String is "VERSION (COMMIT)".
func String() string { return Version + " (" + Commit + ")" }

package main

// clientSettings are known to the server too, since both may share an environment.
func clientSettings() any {
	return struct {
		URL string `env:"CERTCTL_URL" help:"x"`
	}{}
}

package serve

import (
	"encoding/json"
	"net/http"

	"github.com/certctl/certctl/pkg/tick"
)

// loopsHandler shows how the loops of this process are, for operators.
func loopsHandler(states func() map[string][]tick.State) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		reports := make(map[string][]tick.Report)
		for service, s := range states() {
			reports[service] = tick.Reports(s)
		}
		_ = enc.Encode(reports) // the client may be gone
	})
}

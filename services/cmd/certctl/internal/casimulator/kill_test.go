package casimulator_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	simulator "github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/services/cmd/certctl/internal/casimulator"
)

// childDir tells this test program to be the command, on a directory.
const childDir = "SIMULATOR_OF_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		cmd := casimulator.Command()
		cmd.SetArgs([]string{"--data", dir, "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"})
		if cmd.ExecuteContext(context.Background()) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is the command in a process of its own.
type child struct {
	process *exec.Cmd
	out     *output
}

func spawn(t *testing.T, dir string) child {
	t.Helper()
	c := child{process: exec.CommandContext(t.Context(), os.Args[0]), out: &output{}}
	c.process.Env = append(os.Environ(), childDir+"="+dir)
	c.process.Stdout, c.process.Stderr = c.out, c.out
	require.NoError(t, c.process.Start())
	require.Eventually(t, func() bool { return strings.Contains(c.out.String(), "Ctrl-C") }, time.Minute, 5*time.Millisecond)
	return c
}

func (c child) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, c.process.Process.Signal(syscall.SIGKILL))
	require.Error(t, c.process.Wait())
}

// ask uses nothing but what the command wrote into its directory.
func ask(t *testing.T, dir, method, path, body string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "digicert.json"))
	require.NoError(t, err)
	var settings struct {
		BaseURL string `json:"base_url"`
		APIKey  string `json:"api_key"`
		CAFile  string `json:"ca_file"`
	}
	require.NoError(t, json.Unmarshal(text, &settings))
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(settings.CAFile)
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(ca))
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, settings.BaseURL+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("X-Dc-Devkey", settings.APIKey)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Less(t, response.StatusCode, 300, "%s", answer)
	return string(answer)
}

func order(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "www.example.com"}}, key)
	require.NoError(t, err)
	text, err := json.Marshal(map[string]any{
		"certificate":  map[string]any{"common_name": "www.example.com", "csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))},
		"organization": map[string]any{"id": 123456}, "order_validity": map[string]any{"years": 1}, "skip_approval": true,
	})
	require.NoError(t, err)
	return string(text)
}

func TestASimulatorThatWasKilledHasEveryOrderThatItAnswered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := spawn(t, dir)
	var placed struct {
		ID          json.Number `json:"id"`
		Certificate json.Number `json:"certificate_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(ask(t, dir, "POST", "/order/certificate/ssl_basic", order(t))), &placed))
	collect := "/certificate/" + placed.Certificate.String() + "/download/format/pem_all"
	certificate := ask(t, dir, "GET", collect, "")
	c.kill(t)

	c = spawn(t, dir)
	require.Equal(t, certificate, ask(t, dir, "GET", collect, ""))
	require.Contains(t, ask(t, dir, "GET", "/order/certificate/"+placed.ID.String(), ""), `"status":"issued"`)
	c.kill(t)
	sim, err := simulator.New(simulator.Config{Dir: dir})
	require.NoError(t, err, "who was killed holds no lock")
	require.Len(t, sim.Orders(), 1)
	require.NoError(t, sim.Close())
}

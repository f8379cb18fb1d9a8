// Package limit measures what the machine has to give at most, beside what certctl makes of it: a TLS server that sends the same
// bytes and does nothing else, a gRPC echo, the same SQL without anybody around it, and signing. The ratios to these hold on any
// machine.
package limit

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/deploy/bench/internal/gauge"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
)

// Limit is the most that was had.
type Limit struct {
	What       string  `json:"what"`
	Throughput float64 `json:"throughput_per_second"`
	// CPU is what it has cost, in microseconds each, both sides together.
	CPU     float64      `json:"cpu_us_each"`
	Latency load.Latency `json:"latency_ms"`
}

// Server is the argument that makes the program a server to be measured; see Serve.
const Server = "limit-server"

// plan is a closed loop, warm.
func plan(workers int, d time.Duration) load.Plan { return load.Plan{Workers: workers, Duration: d} }

// measure runs a loop and the CPU time that this process and the named one have used for it.
func measure(ctx context.Context, what string, p load.Plan, pid int, do func(ctx context.Context, worker, n int) error) (Limit, error) {
	if r := load.Run(ctx, load.Plan{Workers: p.Workers, Duration: p.Duration / 5}, do); r.Err != nil {
		return Limit{}, fmt.Errorf("%s: %w", what, r.Err)
	}
	before, err := used(pid)
	if err != nil {
		return Limit{}, err
	}
	r := load.Run(ctx, p, do)
	after, err := used(pid)
	if err != nil || r.Err != nil {
		return Limit{}, errors.Join(err, r.Err)
	}
	return Limit{What: what, Throughput: r.Throughput(), Latency: r.Latency, CPU: float64((after - before).Microseconds()) / float64(r.Planned)}, nil
}

// used is the CPU time of this process and another; 0 is none.
func used(pid int) (time.Duration, error) {
	p := gauge.Processes{"load": {os.Getpid()}}
	if pid != 0 {
		p["server"] = []int{pid}
	}
	cpu, err := p.CPU()
	return cpu.Total(), err
}

// bare is a server in a process of its own.
type bare struct {
	cmd     *exec.Cmd
	address string
	trust   *tls.Config
	stdin   io.WriteCloser
}

// start starts this program again as a server.
func start(ctx context.Context, kind string, size int) (*bare, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	b := &bare{cmd: exec.CommandContext(ctx, self, Server, kind, strconv.Itoa(size))}
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a bare server: %w", err)
	}
	if b.stdin, err = b.cmd.StdinPipe(); err != nil { // its end ends the server
		return nil, fmt.Errorf("start a bare server: %w", err)
	}
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a bare server: %w", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a bare server: %w", err), b.cmd.Process.Kill())
	}
	b.address = strings.TrimSpace(line)
	b.trust = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // a server of this program, on loopback, with a certificate made for the moment
	return b, nil
}

func (b *bare) stop() {
	_ = b.stdin.Close()
	_ = b.cmd.Wait() // ended by us
}

// TLS asks a bare HTTPS server for bodies of a size, 0 for a 304.
func TLS(ctx context.Context, workers, size int, d time.Duration) (Limit, error) {
	b, err := start(ctx, "tls", size)
	if err != nil {
		return Limit{}, err
	}
	defer b.stop()
	c := web.New(b.address, "a key of a user of the api", b.trust, workers)
	defer c.Close()
	status, what := http.StatusOK, fmt.Sprintf("bare Go TLS server, %d bytes", size)
	if size == 0 {
		status, what = http.StatusNotModified, "bare Go TLS server, 304"
	}
	return measure(ctx, what, plan(workers, d), b.cmd.Process.Pid, func(_ context.Context, w, _ int) error {
		_, err := c.Want(w, "/", `"a"`, status)
		return err
	})
}

// GRPC asks a bare grpc-go server over TLS.
func GRPC(ctx context.Context, workers int, d time.Duration) (l Limit, err error) {
	b, err := start(ctx, "grpc", 0)
	if err != nil {
		return Limit{}, err
	}
	defer b.stop()
	conn, err := grpc.NewClient(b.address, grpc.WithTransportCredentials(credentials.NewTLS(b.trust)))
	if err != nil {
		return Limit{}, fmt.Errorf("dial the echo: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := grpc_health_v1.NewHealthClient(conn)
	return measure(ctx, "bare grpc-go unary call over TLS", plan(workers, d), b.cmd.Process.Pid, func(ctx context.Context, _, _ int) error {
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	})
}

// SQL runs one statement by pgx, as the services do, in the schema that it is for. args gives those of a request.
func SQL(ctx context.Context, url, schema, sql string, workers int, d time.Duration, args func(n int) []any) (Limit, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return Limit{}, fmt.Errorf("raw SQL: %w", err)
	}
	cfg.MaxConns = int32(workers)
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return Limit{}, fmt.Errorf("raw SQL: %w", err)
	}
	defer pool.Close()
	return measure(ctx, "raw pgx, same SQL", plan(workers, d), 0, func(ctx context.Context, _, n int) error {
		rows, err := pool.Query(ctx, sql, args(n)...)
		if err != nil {
			return err
		}
		_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (int, error) { return len(row.RawValues()), nil })
		return err
	})
}

// Sign signs with ECDSA P-256 on one core.
func Sign(ctx context.Context, d time.Duration) (Limit, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Limit{}, fmt.Errorf("make key: %w", err)
	}
	sum := sha256.Sum256([]byte("to be signed"))
	return measure(ctx, "raw ECDSA P-256 signatures, one core", plan(1, d), 0, func(context.Context, int, int) error {
		_, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		return err
	})
}

// Serve is the server that start starts: it prints its address and serves until its standard input ends.
func Serve(ctx context.Context, kind string, size int) error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if _, err := fmt.Fprintln(os.Stdout, lis.Addr()); err != nil {
		return fmt.Errorf("say the address: %w", err)
	}
	silent, err := zap.NewStdLogAt(zap.NewNop(), zap.DebugLevel)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	trust := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	if kind == "grpc" {
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(trust)))
		grpc_health_v1.RegisterHealthServer(s, echo{})
		return s.Serve(lis)
	}
	body := make([]byte, size)
	server := &http.Server{TLSConfig: trust, ReadHeaderTimeout: time.Minute, ErrorLog: silent,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if size == 0 {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(body)
		})}
	return server.ServeTLS(lis, "", "")
}

type echo struct {
	grpc_health_v1.UnimplementedHealthServer
}

// Check answers at once.
func (echo) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bare"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

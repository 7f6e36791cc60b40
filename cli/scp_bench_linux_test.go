package cli_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"machine/acceptance/hosts"
)

// BenchmarkSCP prints what our scp and OpenSSH's take on the same pair: one big
// file, and very many small ones. The big one is the best of three, in turns.
func BenchmarkSCP(b *testing.B) {
	hosts.Isolated(b)
	bin := filepath.Join("..", "bin", "machine")
	if _, err := os.Stat(bin); err != nil {
		b.Skip("make build first")
	}
	store := hosts.RealStore(b)
	b.Setenv("MACHINE_STORAGE_PATH", store)
	h := hosts.New(b, hosts.Cgroups())
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run(bin, "create", "-d", "generic", "--generic-ip-address", h.IP, "--generic-ssh-key", h.Key, "web")
	src := b.TempDir()
	big, small := filepath.Join(src, "big"), filepath.Join(src, "small")
	makeBig(b, big, 512<<20)
	makeSmall(b, small, 20000)
	theirs := func(from, to string) []string {
		return []string{"scp", "-q", "-r", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-i", h.Key, from, to}
	}
	for _, c := range []struct{ what, path string }{{"512 MiB in one file", big}, {"20,000 files of 1 KiB", small}} {
		base := filepath.Base(c.path)
		for _, up := range []bool{true, false} {
			var ours, other time.Duration
			for range map[bool]int{true: 3, false: 1}[c.path == big] {
				timed := func(best *time.Duration, args []string) {
					h.Exec("rm -rf /srv/in")
					_ = os.RemoveAll(filepath.Join(src, "in"))
					start := time.Now()
					run(args...)
					if d := time.Since(start); *best == 0 || d < *best {
						*best = d
					}
				}
				if up {
					timed(&ours, []string{bin, "scp", "-q", "-r", c.path, "web:/srv/in"})
					timed(&other, theirs(c.path, "root@"+h.IP+":/srv/in"))
				} else {
					h.Exec("mkdir -p /srv/out")
					run(bin, "scp", "-q", "-r", c.path, "web:/srv/out")
					timed(&ours, []string{bin, "scp", "-q", "-r", "web:/srv/out/" + base, filepath.Join(src, "in")})
					timed(&other, theirs("root@"+h.IP+":/srv/out/"+base, filepath.Join(src, "in")))
				}
			}
			way := map[bool]string{true: "to the host", false: "from the host"}[up]
			fmt.Printf("scp of %s, %s: machine %v, OpenSSH %v: %.1f times as fast\n", c.what, way,
				ours.Round(time.Millisecond), other.Round(time.Millisecond), float64(other)/float64(ours))
		}
	}
}

func makeBig(tb testing.TB, name string, size int64) {
	f, err := os.Create(name)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

func makeSmall(tb testing.TB, dir string, n int) {
	data := make([]byte, 1024)
	_, _ = rand.Read(data)
	for i := range n {
		d := filepath.Join(dir, fmt.Sprint(i%100))
		if i < 100 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprint(i)), data, 0o644); err != nil {
			tb.Fatal(err)
		}
	}
}

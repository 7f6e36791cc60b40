package bench

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"machine/acceptance/engine"
)

// The image of the figures: what a middling application is made of.
const (
	imageLayers = 5
	imageFiles  = 49_000
	imageMean   = 21_500 // bytes of a file, on average
)

// A bigImage is an archive as docker save writes it.
type bigImage struct {
	file string
	raw  float64 // bytes of its layers' tars
}

// words is text that gzip brings to some 36 per cent.
func words(n int) []byte {
	r := rand.New(rand.NewPCG(11, 7))
	dict := make([][]byte, 6000)
	for i := range dict {
		w := make([]byte, 2+r.IntN(9))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		dict[i] = append(w, ' ')
	}
	out := make([]byte, 0, n+128)
	for len(out) < n {
		if r.IntN(20) == 0 && len(out) > 30_000 { // phrases come again
			at := len(out) - 1 - r.IntN(30_000)
			out = append(out, out[at:min(at+10+r.IntN(90), len(out))]...)
		}
		out = append(out, dict[int(float64(len(dict))*r.Float64()*r.Float64())]...)
	}
	return out[:n]
}

// makeImage writes the image's archive, the same one each time.
func makeImage(dir string) (*bigImage, error) {
	m := &bigImage{file: filepath.Join(dir, "image.tar")}
	f, err := os.Create(m.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	tw := tar.NewWriter(out)
	pool := words(48 << 20)
	r := rand.New(rand.NewPCG(3, 5))
	var diffs, names []string
	for l := range imageLayers {
		b, err := os.CreateTemp(dir, "layer")
		if err != nil {
			return nil, err
		}
		size, sum, err := writeLayer(b, l, pool, r)
		if err == nil {
			err = copyLayer(tw, b, fmt.Sprintf("l%d/layer.tar", l), size)
		}
		b.Close()
		os.Remove(b.Name())
		if err != nil {
			return nil, err
		}
		m.raw += float64(size)
		diffs, names = append(diffs, sum), append(names, fmt.Sprintf("l%d/layer.tar", l))
	}
	conf, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": map[string]any{"Cmd": []string{"true"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	list, _ := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{"big:1"}, "Layers": names}})
	for _, s := range []struct {
		name string
		b    []byte
	}{{"config.json", conf}, {"manifest.json", list}} {
		if err := tw.WriteHeader(&tar.Header{Name: s.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(s.b))}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(s.b); err != nil {
			return nil, err
		}
	}
	return m, errors.Join(tw.Close(), out.Flush(), f.Sync())
}

func copyLayer(tw *tar.Writer, f *os.File, name string, size int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(tw, f)
	return err
}

// writeLayer writes one layer's tar and gives its size and digest.
func writeLayer(f *os.File, l int, pool []byte, r *rand.Rand) (size int64, sum string, err error) {
	h := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, h), 1<<20)
	tw := tar.NewWriter(out)
	at := time.Unix(1_700_000_000, 0)
	for i := range imageFiles / imageLayers {
		dir := fmt.Sprintf("usr/share/part%d/d%d", l, i/60)
		if i%60 == 0 {
			if err := tw.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at}); err != nil {
				return 0, "", err
			}
		}
		n := int(r.ExpFloat64() * imageMean)
		n = min(n, 1<<20)
		from := r.IntN(len(pool) - n)
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/file%d.txt", dir, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n), ModTime: at}); err != nil {
			return 0, "", err
		}
		if _, err := tw.Write(pool[from : from+n]); err != nil {
			return 0, "", err
		}
	}
	if err := errors.Join(tw.Close(), out.Flush()); err != nil {
		return 0, "", err
	}
	size, err = f.Seek(0, io.SeekCurrent)
	return size, fmt.Sprintf("sha256:%x", h.Sum(nil)), err
}

// A mover is a side that moves the image about.
type mover struct {
	*side
	host func(args ...string) *exec.Cmd // a command beside the engine
	pid  func() int                     // of the engine
}

// children are the processes that pid has begun.
func children(pid int) (out []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(b)) {
		n, _ := strconv.Atoi(f)
		out = append(out, n)
	}
	return out
}

// mover is a peer that moves images: unshare holds a shell, and that the
// daemon.
func (s *side) mover() *mover {
	shell := children(s.holder)[0]
	host := func(args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(shell), "-m", "-p", "-n", "-u", "-i", "--"}, args...)...)
	}
	return &mover{s, host, func() int {
		for _, p := range children(shell) {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p)); strings.TrimSpace(string(comm)) == "dockerd" {
				return p
			}
		}
		return shell
	}}
}

// cpu is how long the engine and the children it has waited for have had a
// processor, in seconds: proc(5), fields 14 to 17 of stat.
func (m *mover) cpu() float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.pid()))
	_, rest, _ := strings.Cut(string(b), ") ")
	sum := 0.0
	for i, f := range strings.Fields(rest) {
		if i >= 11 && i <= 14 {
			n, _ := strconv.ParseFloat(f, 64)
			sum += n / 100
		}
	}
	return sum
}

// registry starts an empty registry beside the engine.
func (m *mover) registry(dir string, port int) (stop func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: \"127.0.0.1:%d\"}\n", dir, port)
	if err := os.WriteFile(dir+".yml", []byte(conf), 0o600); err != nil {
		return nil, err
	}
	c := m.host("sh", "-c", fmt.Sprintf("echo $$ >%s.pid; exec docker-registry serve %s.yml", dir, dir))
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		m.host("sh", "-c", fmt.Sprintf("kill -9 $(cat %s.pid)", dir)).Run()
		c.Wait()
		os.RemoveAll(dir)
	}
	for range 400 {
		if m.host("curl", "-sf", fmt.Sprintf("http://127.0.0.1:%d/v2/", port)).Run() == nil {
			return stop, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	return nil, errors.New("the registry does not answer")
}

var anonymous = base64.URLEncoding.EncodeToString([]byte("{}"))

// order makes a request whose answer is a stream of messages, all of which
// must be good.
func (m *mover) order(path, kind string, body io.Reader) error {
	req, err := newRequest("POST", path, kind, body)
	if err != nil {
		return err
	}
	req.Header.Set("X-Registry-Auth", anonymous)
	resp, err := m.c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode >= 300 || strings.Contains(string(b), `"error"`)) {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, b[max(0, len(b)-500):])
	}
	return err
}

func (m *mover) load(img *bigImage) error {
	f, err := os.Open(img.file)
	if err != nil {
		return err
	}
	defer f.Close()
	return m.order("/images/load?quiet=1", "application/x-tar", f)
}

func (m *mover) save(img *bigImage) error {
	resp, err := m.c.Get("http://engine/v1.41/images/big:1/get")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != 200 || float64(n) < img.raw) {
		err = fmt.Errorf("save: %s, %d bytes", resp.Status, n)
	}
	return err
}

// exchange has one side load what the other one has saved of its busybox: it
// must be the same image, and run.
func exchange(from, to *side, name string) error {
	was, err := from.imageID("busybox")
	if err != nil {
		return err
	}
	if _, err := from.do("POST", "/images/busybox/tag?repo="+name+"&tag=1", ""); err != nil {
		return err
	}
	resp, err := from.c.Get("http://engine/v1.41/images/" + name + ":1/get")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := to.send("POST", "/images/load", "application/x-tar", resp.Body)
	if err != nil {
		return err
	}
	got, err := to.imageID(name + ":1")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if got != was {
		return fmt.Errorf("%s was saved, %s was loaded", was, got)
	}
	c, err := to.do("POST", "/containers/create", `{"Image":"`+name+`:1","Cmd":["true"],"HostConfig":{"NetworkMode":"none"}}`)
	if err != nil {
		return err
	}
	if c, err = id(c); err != nil {
		return err
	}
	code := ""
	if err = to.start(c); err == nil {
		code, err = to.do("POST", "/containers/"+c+"/wait", "")
	}
	if err == nil && !strings.Contains(code, `"StatusCode":0`) {
		err = fmt.Errorf("true in %s: %s", name, code)
	}
	_, err2 := to.do("DELETE", "/images/"+name+":1?force=1", "")
	return errors.Join(err, to.remove(c), err2)
}

func (s *side) imageID(name string) (string, error) {
	out, err := s.do("GET", "/images/"+name+"/json", "")
	if err != nil {
		return "", err
	}
	return id(out)
}

// BenchmarkExchange has archives of dockerd's loaded here and ours there.
func BenchmarkExchange(b *testing.B) {
	if b.N > 1 || os.Getuid() != 0 {
		b.Skip("run with -benchtime 1x, as root")
	}
	us := ours(b)
	d := dockerd(b, filepath.Join(us.shared, "busybox.tar"))
	if d == nil {
		b.Skip("no peer")
	}
	if err := errors.Join(exchange(us, d, "ours"), exchange(d, us, "theirs")); err != nil {
		b.Error(err)
	}
}

// moves are the figures of one side: rates in MB/s and seconds of processor.
type moves map[string]*struct{ rate, cpu figure }

// round moves the image in all ways once.
func (m *mover) round(img *bigImage, n int, into moves) error {
	port := 5100 + n
	name := fmt.Sprintf("127.0.0.1:%d/big", port)
	stop, err := m.registry(filepath.Join(m.shared, fmt.Sprint("registry", n)), port)
	if err != nil {
		return err
	}
	defer stop()
	steps := []struct {
		name string
		f    func() error
	}{
		{"load", func() error { return m.load(img) }},
		{"save", func() error { return m.save(img) }},
		{"", func() error { _, err := m.do("POST", "/images/big:1/tag?repo="+name+"&tag=1", ""); return err }},
		{"push", func() error { return m.order("/images/"+name+"/push?tag=1", "application/json", nil) }},
		{"", func() error {
			_, err := m.do("DELETE", "/images/big:1", "")
			_, err2 := m.do("DELETE", "/images/"+name+":1", "")
			return errors.Join(err, err2)
		}},
		{"pull", func() error { return m.order("/images/create?fromImage="+name+"&tag=1", "application/json", nil) }},
		{"", func() error { _, err := m.do("DELETE", "/images/"+name+":1", ""); return err }},
	}
	for _, s := range steps {
		exec.Command("sync").Run() // each pays for its own writes
		begin, cpu := time.Now(), m.cpu()
		if err := s.f(); err != nil {
			return err
		}
		if s.name == "" {
			time.Sleep(time.Second) // what is removed in the background
			continue
		}
		if into[s.name] == nil {
			into[s.name] = &struct{ rate, cpu figure }{}
		}
		rate := img.raw / mega / time.Since(begin).Seconds()
		into[s.name].rate = append(into[s.name].rate, rate)
		into[s.name].cpu = append(into[s.name].cpu, m.cpu()-cpu)
		fmt.Printf("round %d, %s, %s: %.0f MB/s\n", n+1, filepath.Base(m.shared), s.name, rate)
	}
	return nil
}

func (f figure) median() float64 {
	if len(f) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(f))
	return s[len(s)/2]
}

// BenchmarkImages prints the rates of load, save, push and pull beside
// dockerd's, round about, so that both meet the same computer. "make
// bench-images" runs it; BENCH_IMAGE_ROUNDS is how often, BENCH_ALONE leaves
// dockerd out.
func BenchmarkImages(b *testing.B) {
	if os.Getenv("BENCH_IMAGES") == "" || b.N > 1 || os.Getuid() != 0 {
		b.Skip("run by make bench-images, as root")
	}
	rounds, _ := strconv.Atoi(os.Getenv("BENCH_IMAGE_ROUNDS"))
	rounds = max(rounds, 1)
	dir, err := os.MkdirTemp("/var/tmp", "bench-image-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	img, err := makeImage(dir)
	if err != nil {
		b.Fatal(err)
	}
	e := engine.New(b)
	us := &mover{newSide(e.AgentSocket(), e.Dir), e.Host, e.AgentPid}
	both := []*mover{us}
	if os.Getenv("BENCH_ALONE") == "" {
		e.Busybox()
		if d := dockerd(b, filepath.Join(e.Dir, "busybox.tar")); d != nil {
			both = append(both, d.mover())
		}
	}
	got := make([]moves, len(both))
	for n := range rounds {
		for i, m := range both {
			if got[i] == nil {
				got[i] = moves{}
			}
			if err := m.round(img, n, got[i]); err != nil {
				b.Errorf("side %d: %v", i, err)
				both = both[:i]
				break
			}
		}
	}
	printMoves(img, rounds, got)
}

func printMoves(img *bigImage, rounds int, got []moves) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "\n%.0f MB raw, %d files, %d layers; %d rounds, medians\n", img.raw/mega, imageFiles, imageLayers, rounds)
	fmt.Fprintln(w, "what\tbudget\tours MB/s\tours CPU s\tdockerd MB/s\tdockerd CPU s\tratio")
	for _, r := range []struct{ name, budget string }{{"load", ">= 200"}, {"save", ">= 200"}, {"push", ">= 3 x dockerd"}, {"pull", ">= 150"}} {
		o := got[0][r.name]
		if o == nil {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.1f", r.name, r.budget, o.rate.median(), o.cpu.median())
		if len(got) > 1 && got[1][r.name] != nil {
			d := got[1][r.name]
			fmt.Fprintf(w, "\t%.0f\t%.1f\t%.1f", d.rate.median(), d.cpu.median(), o.rate.median()/d.rate.median())
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

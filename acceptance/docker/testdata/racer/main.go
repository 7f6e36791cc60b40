// Command racer is run inside containers by tests: as fast as it can it
// changes what paths mean, looks into the processes that join its container,
// or prints without a newline.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "racer swap A B [A B ...] | plant NAME TARGET | steal DIR TARGET | trace STOP CAPS | stream MIB")
		os.Exit(2)
	}
	args := os.Args[2:]
	if os.Args[1] == "stream" {
		stream(args[0])
		return
	}
	fmt.Println("ready")
	switch os.Args[1] {
	case "swap":
		swap(args)
	case "plant":
		plant(args[0], args[1])
	case "steal":
		steal(args[0], args[1])
	case "trace":
		trace(args[0], args[1])
	}
}

// stream prints so many MiB without a newline: blocks of 64 KiB, each with its
// number in front. On stderr it says how long it took, and how long its
// slowest write, in milliseconds.
func stream(mib string) {
	n, _ := strconv.Atoi(mib)
	block := bytes.Repeat([]byte("x"), 64<<10)
	began, worst := time.Now(), time.Duration(0)
	for i := range n * 16 {
		copy(block, fmt.Sprintf("%016x", i))
		at := time.Now()
		if _, err := os.Stdout.Write(block); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		worst = max(worst, time.Since(at))
	}
	fmt.Fprintln(os.Stderr, time.Since(began).Milliseconds(), worst.Milliseconds())
}

// swap exchanges the names of each pair.
func swap(names []string) {
	for {
		for i := 0; i+1 < len(names); i += 2 {
			unix.Renameat2(unix.AT_FDCWD, names[i], unix.AT_FDCWD, names[i+1], unix.RENAME_EXCHANGE)
		}
	}
}

// plant puts a link in the place of whatever is made under a name, and takes
// it away again, so that it is made anew.
func plant(name, target string) {
	link := name + ".link"
	for {
		os.Symlink(target, link)
		if _, err := os.Lstat(name); err == nil {
			os.Rename(link, name)
		}
		os.RemoveAll(name)
	}
}

// steal waits until a directory is made, puts a link in its place, and then
// takes all away, so that it is made anew.
func steal(dir, target string) {
	for {
		if os.Rename(dir, dir+".real") != nil {
			continue
		}
		os.Symlink(target, dir)
		for range 200 {
			unix.Stat(dir, new(unix.Stat_t))
		}
		os.Remove(dir)
		d, _ := os.ReadDir(".")
		for _, e := range d {
			os.RemoveAll(e.Name())
		}
	}
}

// trace attaches to every process that appears, until the file stop is there,
// and says what it found of one that is not the container's own: descriptors
// that lead out, capabilities beyond the allowed ones.
func trace(stop, allowed string) {
	runtime.LockOSThread() // who attaches must also let go
	limit, _ := strconv.ParseUint(allowed, 16, 64)
	known := map[int]bool{}
	seen, attached := 0, 0
	for unix.Access(stop, 0) != nil {
		for _, pid := range pids() {
			if known[pid] {
				continue
			}
			known[pid] = true
			seen++
			look(pid, limit)
			if unix.PtraceSeize(pid) != nil {
				continue
			}
			attached++
			unix.PtraceInterrupt(pid)
			var ws unix.WaitStatus
			unix.Wait4(pid, &ws, unix.WALL, nil)
			look(pid, limit)
			unix.PtraceDetach(pid)
		}
	}
	fmt.Println("seen", seen, "attached", attached)
}

// pids are the processes of this container, without the tracer and those that
// were there before.
func pids() (out []int) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid != os.Getpid() && pid != 1 {
			out = append(out, pid)
		}
	}
	return out
}

func look(pid int, limit uint64) {
	dir := "/proc/" + strconv.Itoa(pid)
	for fd := 3; fd < 64; fd++ {
		l, err := os.Readlink(dir + "/fd/" + strconv.Itoa(fd))
		if err == nil && !strings.HasPrefix(l, "pipe:") { // the one that tells the exec's error
			exe, _ := os.Readlink(dir + "/exe")
			fmt.Println("FOUND fd", fd, l, "of", exe)
		}
	}
	b, _ := os.ReadFile(dir + "/status")
	for l := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(strings.TrimSpace(l), ":\t")
		if name != "CapEff" && name != "CapPrm" {
			continue
		}
		if c, _ := strconv.ParseUint(v, 16, 64); c&^limit != 0 {
			fmt.Println("FOUND", l)
		}
	}
}

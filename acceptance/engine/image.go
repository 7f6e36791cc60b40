package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

func (e *Engine) nap() { time.Sleep(20 * time.Millisecond) }

// Busybox imports an image made from the computer's static busybox under the
// name busybox, with its applets, a passwd and a group.
func (e *Engine) Busybox() {
	e.T.Helper()
	dir := filepath.Join(e.Dir, "busybox")
	script := `set -e
mkdir -p bin etc tmp root home var/www dev proc sys
cp /bin/busybox bin/busybox
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nuser:x:1000:\nextra:x:2000:user\n' >etc/group
chmod 1777 tmp
tar -cf ../busybox.tar .`
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		e.T.Fatal(err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		e.T.Fatal(err)
	}
	for _, a := range strings.Fields(string(applets)) { // 400 calls of ln take seconds in an emulated machine
		if a == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil && !os.IsExist(err) {
			e.T.Fatal(err)
		}
	}
	c := exec.Command("sh", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		e.T.Fatalf("make the busybox image: %v\n%s", err, out)
	}
	e.Run("import", "--change", "CMD [\"sh\"]", "--change", "ENV PATH=/bin", filepath.Join(e.Dir, "busybox.tar"), "busybox:latest")
}

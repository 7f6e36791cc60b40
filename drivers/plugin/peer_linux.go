package plugin

import (
	"bufio"
	"encoding/hex"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

// peerAllowed reports whether the connecting process is of our user or root,
// by /proc/net/tcp (proc(5)): the other end of a loopback connection is in
// this computer's table, with its owner.
func peerAllowed(c net.Conn) bool {
	peer, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok || peer.IP.To4() == nil {
		return false
	}
	ip := slices.Clone([]byte(peer.IP.To4()))
	slices.Reverse(ip) // the table has little-endian words
	want := strings.ToUpper(hex.EncodeToString(ip)) + ":" + strings.ToUpper(hex.EncodeToString([]byte{byte(peer.Port >> 8), byte(peer.Port)}))
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) > 7 && fields[1] == want {
			uid, err := strconv.Atoi(fields[7])
			return err == nil && (uid == os.Getuid() || uid == 0)
		}
	}
	return false
}

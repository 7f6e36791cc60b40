package firewall

import (
	"encoding/binary"
	"os"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// warn tells once of rules of others that drop what ours accept: with netfilter
// an accept is final only for its own chain. We do not touch them.
func (f *Firewall) warn() {
	if f.warned {
		return
	}
	f.warned = true
	if legacyForwardDrops() {
		f.log.Warn("iptables (legacy) drops forwarded packets by policy: containers will not reach other hosts; run iptables-legacy -P FORWARD ACCEPT")
	}
	c, err := dial(0)
	if err != nil {
		return
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return
	}
	for _, ch := range chains {
		if ch.Table.Name != TableName && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward &&
			ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			f.log.Warn("another nftables chain drops forwarded packets by policy: containers may not reach other hosts",
				"table", ch.Table.Name, "chain", ch.Name)
		}
	}
}

// Of linux/netfilter_ipv4/ip_tables.h.
const (
	iptGetInfo    = 64
	iptGetEntries = 65
	infoSize      = 84 // struct ipt_getinfo
	entriesHead   = 40 // struct ipt_get_entries before its table
	entryTarget   = 88 // offset of target_offset in struct ipt_entry
	verdictOffset = 32 // of the verdict in a standard target
	hookForward   = 2  // NF_INET_FORWARD
	maxTable      = 8 << 20
)

// legacyForwardDrops reads the policy of iptables-legacy's FORWARD chain. A
// table that is not loaded is not loaded for it.
func legacyForwardDrops() bool {
	names, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil || !strings.Contains(string(names), "filter") {
		return false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, "filter")
	if !getsockopt(fd, iptGetInfo, info) {
		return false
	}
	word := binary.NativeEndian.Uint32
	policy, size := word(info[32+4+20+4*hookForward:]), word(info[80:])
	if size > maxTable {
		return false
	}
	table := make([]byte, entriesHead+size)
	copy(table, "filter")
	binary.NativeEndian.PutUint32(table[32:], size)
	if !getsockopt(fd, iptGetEntries, table) || uint64(policy)+entryTarget+2 > uint64(size) {
		return false
	}
	entry := table[entriesHead+policy:]
	at := int(binary.NativeEndian.Uint16(entry[entryTarget:])) + verdictOffset
	if at+4 > len(entry) {
		return false
	}
	const drop = -1 // -NF_DROP - 1
	return int32(word(entry[at:])) == drop
}

func getsockopt(fd, opt int, b []byte) bool {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(opt),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	return errno == 0
}

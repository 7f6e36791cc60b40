package host

import (
	"os/exec"
	"strings"
)

// forwardRules let machines out, and answers in, on a computer that forwards
// nothing by default. One that runs Docker is of that kind, and a verdict of
// our own nftables table cannot overrule the drop of another one: the rules
// must be where the drop is, and only the computer's own iptables knows whether
// that is in nftables or in the old tables.
var forwardRules = [][]string{
	{"-i", bridgeName, "-j", "ACCEPT"},
	{"-o", bridgeName, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
}

// allowForward adds the rules where they are needed. Safe to repeat; without
// iptables there is no such drop.
func allowForward() {
	out, err := iptables("-S", "FORWARD")
	if err != nil || !strings.Contains(out, "-P FORWARD DROP") {
		return
	}
	chain := "FORWARD"
	if _, err := iptables("-S", "DOCKER-USER"); err == nil {
		chain = "DOCKER-USER" // Docker leaves this one alone
	}
	for _, rule := range forwardRules {
		if _, err := iptables(append([]string{"-C", chain}, rule...)...); err != nil {
			_, _ = iptables(append([]string{"-I", chain}, rule...)...)
		}
	}
}

// forbidForward takes the rules away again. None is no error.
func forbidForward() {
	for _, chain := range []string{"FORWARD", "DOCKER-USER"} {
		out, err := iptables("-S", chain)
		if err != nil || !strings.Contains(out, bridgeName) {
			continue
		}
		for _, rule := range forwardRules {
			_, _ = iptables(append([]string{"-D", chain}, rule...)...)
		}
	}
}

func iptables(args ...string) (string, error) {
	bin := "iptables"
	if _, err := exec.LookPath(bin); err != nil {
		bin = "/usr/sbin/iptables"
	}
	out, err := exec.Command(bin, append([]string{"-w"}, args...)...).Output()
	return string(out), err
}

# Facts of a host, as KEY=VALUE lines.
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
S=
echo "uid=$(id -u)"
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null 2>&1; then
		if sudo -n true >/dev/null 2>&1; then S="sudo -n"; echo sudo=ok; else echo sudo=password; fi
	else
		echo sudo=none
	fi
fi
set -- $(uname -s -m -r)
echo "os=$1"
echo "kernel=$2"
echo "arch=$3"
case "$2" in x86_64|aarch64|arm*|i?86|riscv*|ppc*|s390*) echo "arch=$2"; echo "kernel=$3" ;; esac
(. /etc/os-release 2>/dev/null && echo "distro=${PRETTY_NAME:-$ID}")
echo "hostname=$(uname -n)"
pid1=$(cat /proc/1/comm 2>/dev/null)
echo "pid1=$pid1"
if [ -f /etc/machine/ssh_host_ed25519_key ] || $S test -f /etc/machine/ssh_host_ed25519_key; then echo init=machine
elif [ -d /run/systemd/system ]; then echo init=systemd
elif [ -d /run/openrc ] && command -v rc-service >/dev/null 2>&1; then echo init=openrc
elif [ "$pid1" = init ] && [ -d /etc/init.d ] && [ -d /etc/rc2.d ]; then echo init=sysvinit
else echo init=none
fi
for d in /usr/local/bin /usr/local /usr; do
	[ -d "$d" ] && { df -Pk "$d" 2>/dev/null | awk 'NR==2{print "free_bin=" $4}'; break; }
done
for d in /var/lib/docker /var/lib /var; do
	[ -d "$d" ] && { df -Pk "$d" 2>/dev/null | awk 'NR==2{print "free_data=" $4}'; break; }
done
df -Pk /tmp 2>/dev/null | awk 'NR==2{print "free_tmp=" $4}'
command -v docker >/dev/null 2>&1 && echo docker=yes
sums() { for f; do $S test -f "$f" && $S sha256sum "$f"; done 2>/dev/null; }
sums /usr/local/bin/machine-agent /etc/docker/ca.pem /etc/docker/server.pem /etc/docker/server-key.pem \
	/etc/systemd/system/machine-agent.service /etc/init.d/machine-agent /etc/machine-agent/args /etc/machine-agent/env \
	/etc/machine-agent/custom-install |
	while read -r sum file; do echo "sum:$file=$sum"; done
# Who listens on the engine's port, read without ss or netstat.
hex=$(printf '%04X' "$PORT")
inode=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v p=":$hex" '$4=="0A" && substr($2,length($2)-4)==p {print $10; exit}')
if [ -n "$inode" ]; then
	echo "port_inode=$inode"
	for fd in $($S sh -c "ls -l /proc/[0-9]*/fd 2>/dev/null" | awk -v i="socket:[$inode]" '/^\/proc\//{p=$1} index($0,i){print p; exit}'); do
		pid=${fd#/proc/}; pid=${pid%%/*}
		echo "port_pid=$pid"
		echo "port_name=$(cat /proc/$pid/comm 2>/dev/null)"
	done
fi
for p in /proc/[0-9]*/comm; do
	read -r c <"$p" 2>/dev/null || continue
	case "$c" in
	dockerd) d=${p%/comm}; echo "dockerd=${d#/proc/}" ;;
	machine-agent) echo agent_runs=yes ;;
	esac
done
echo "clock=$(date +%s)"
echo done=yes

#!/bin/sh
# needs.sh: installs what the demo and the tests need and this computer lacks,
# from Debian's packages. Safe to repeat; does nothing when all is there. With
# PEERS=1 also Debian's Docker engine, for the tests that compare with it: on
# computers that are for tests alone.
set -eu
need=
want() { command -v "$1" >/dev/null 2>&1 || need="$need $2"; }
want busybox busybox-static
want ip iproute2
want nft nftables
want curl curl
want sshd openssh-server
want ssh openssh-client
want zstd zstd
want xz xz-utils
want unshare util-linux
want pgrep procps
want tmux tmux
want mkfs.ext4 e2fsprogs
want strace strace
want sshfs sshfs
want iptables iptables
want docker docker-cli
want skopeo skopeo
want buildah buildah
[ -z "${PEERS:-}" ] || want dockerd docker.io
want setcap libcap2-bin
[ -e /usr/bin/docker-registry ] || need="$need docker-registry"
[ -d /usr/lib/python3/dist-packages/docker ] || need="$need python3-docker"
# Other init systems: their packages are unpacked into test hosts, never
# installed here. The tests skip without them.
inits=/var/cache/machine-inits
if [ "$(id -u)" = 0 ] && [ ! -e $inits/all ] && mkdir -p $inits/new; then
	(cd $inits/new && { apt-cache show openrc >/dev/null 2>&1 || apt-get update -qq; } &&
		apt-get download -qq -o APT::Sandbox::User=root sysvinit-core sysvinit-utils sysv-rc insserv startpar openrc librc1 libeinfo1 >/dev/null &&
		rm -f ../*.deb && mv ./*.deb .. && touch ../all) || echo "needs.sh: no packages of other init systems" >&2
	rm -rf $inits/new
fi
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "needs.sh: missing:$need; run as root, or install them" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
case $need in *docker-cli*)
	apt-cache show docker-cli >/dev/null 2>&1 || need=$(echo "$need" | sed 's/docker-cli/docker.io/')
esac
# Debian starts servers when it installs them: a policy keeps them down.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f $policy' EXIT
fi
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $need >/dev/null

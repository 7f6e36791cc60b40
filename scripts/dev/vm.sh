#!/bin/sh
# vm.sh [packages]: runs the tests of packages as root in a virtual machine
# with Debian's kernel, for what this computer's kernel may lack: cgroup v2
# alone, ipvlan, 802.1q, AppArmor, an overlayfs of before 6.5. QEMU emulates it,
# so it needs no KVM and is several times slower. The machine's disk is made
# once, under VM_CACHE; a run leaves nothing behind. Needs root, debootstrap
# and qemu-system-x86.
#	VM_RUN=regexp      which tests (as go test -run)
#	VM_INIT=systemd    boots systemd; else nothing runs but the tests
#	VM_TIMEOUT=2400    seconds for all
#	VM_LOG=file        keeps all output
#	VM_KERNEL=args     further arguments of the kernel
set -eu
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0 PATH="$PATH:/usr/sbin:/sbin"
[ $# -gt 0 ] || set -- ./agent/runtime/... ./agent/layer/... ./agent/network/... ./agent/container ./agent/shim ./agent/host ./acceptance/vm
for need in qemu-system-x86_64 debootstrap mke2fs docker; do
	command -v $need >/dev/null || { echo "vm.sh: $need is missing: apt-get install qemu-system-x86 debootstrap e2fsprogs docker-cli" >&2; exit 1; }
done
cache=${VM_CACHE:-/var/cache/machine-vm}
mkdir -p "$cache"
work=$(mktemp -d /var/tmp/machine-vm.XXXXXX)
trap 'trap "" INT TERM; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# A first stage that knows the disks' driver, and nothing else.
initramfs() {
	dir=$work/initramfs root=$1 kernel=$2
	mkdir -p "$dir/bin" "$dir/proc" "$dir/root"
	cp "$root/bin/busybox" "$dir/bin/busybox"
	{
		echo '#!/bin/busybox sh'
		for m in virtio_pci virtio_blk virtio_rng ext4; do
			chroot "$root" modprobe -S "$kernel" --show-depends $m
		done | while read -r _ file _; do
			[ -f "$root$file" ] || continue
			[ -f "$dir/$(basename "$file")" ] || echo "/bin/busybox insmod /$(basename "$file")"
			cp "$root$file" "$dir"
		done
		cat <<-'END'
			/bin/busybox mount -t proc proc /proc
			/bin/busybox mdev -s 2>/dev/null
			/bin/busybox mount -t devtmpfs dev /dev
			/bin/busybox mount /dev/vda /root
			next=/sbin/vm-init
			for w in $(/bin/busybox cat /proc/cmdline); do
				case $w in vm.init=systemd) next=/sbin/init ;; esac
			done
			/bin/busybox umount /proc
			/bin/busybox mount --move /dev /root/dev
			exec /bin/busybox switch_root /root $next
		END
	} >"$dir/init"
	mkdir "$dir/dev"
	chmod +x "$dir/init"
	(cd "$dir" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd"
}

# The files of init: none, which mounts what systemd would and runs the tests,
# or systemd, which runs them as a service.
inits() {
	cat >"$1/sbin/vm-init" <<-'END'
		#!/bin/sh
		export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t securityfs securityfs /sys/kernel/security
		mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
		mkdir -p /dev/pts /dev/shm /dev/mqueue
		mount -t devpts -o gid=5,mode=620,ptmxmode=000 devpts /dev/pts
		mount -t tmpfs tmpfs /dev/shm
		mount -t tmpfs tmpfs /run
		mount -t mqueue mqueue /dev/mqueue
		ln -sf /proc/self/fd /dev/fd
		ip link set lo up
		hostname vm
		mount /dev/vdb /var/tmp
		sh /var/tmp/run </dev/null >/dev/console 2>&1
		sync
		echo o >/proc/sysrq-trigger
		sleep 60
	END
	chmod +x "$1/sbin/vm-init"
	cat >"$1/etc/systemd/system/vm.service" <<-'END'
		[Unit]
		After=basic.target
		[Service]
		Environment=HOME=/root
		ExecStartPre=/bin/mount /dev/vdb /var/tmp
		Delegate=yes
		ExecStart=/bin/sh /var/tmp/run
		ExecStopPost=/bin/systemctl poweroff --force --force
		StandardOutput=tty
		StandardError=tty
		TTYPath=/dev/console
		[Install]
		WantedBy=multi-user.target
	END
	ln -sf /etc/systemd/system/vm.service "$1/etc/systemd/system/multi-user.target.wants/vm.service"
	for unit in ssh getty.target serial-getty@ttyS0 apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_reap systemd-networkd; do
		case $unit in *.*) ;; *) unit=$unit.service ;; esac
		ln -sf /dev/null "$1/etc/systemd/system/$unit"
	done
	: >"$1/etc/fstab" # there is no udev to tell systemd of disks
	echo vm >"$1/etc/hostname"
}

packages=apparmor,busybox-static,ca-certificates,curl,dbus,e2fsprogs,iproute2,iptables,iputils-ping,kmod,mount,nftables,openssh-client,openssh-server,procps,strace,systemd-sysv,util-linux,xz-utils,zstd
base=$cache/$(cat "$0" | sed -n '/^initramfs()/,/^packages=/p' | sha256sum | cut -c1-12)
if [ ! -e "$base.ext4" ]; then
	echo "vm.sh: making the machine's disk, once" >&2
	debootstrap --variant=minbase --include=$packages bookworm "$work/root" >"$work/log" 2>&1 || { tail "$work/log" >&2; exit 1; }
	image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
	(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$image" && dpkg-deb -x linux-image-*.deb image)
	mv "$work/image/lib/modules" "$work/root/usr/lib/" # not into root itself, whose /lib is a link
	kernel=$(ls "$work/root/lib/modules")
	chroot "$work/root" depmod "$kernel"
	inits "$work/root"
	initramfs "$work/root" "$kernel"
	cp "$work"/image/boot/vmlinuz-* "$base.kernel"
	cp "$work/initrd" "$base.initrd"
	rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"
	mke2fs -q -q -t ext4 -d "$work/root" "$work/base.ext4" 1500M
	find "$cache" -name '*.ext4' -o -name '*.kernel' -o -name '*.initrd' | grep -v "^$base" | xargs -r rm -f
	mv "$work/base.ext4" "$base.ext4" # the last: the cache is whole when it is there
	rm -rf "$work/root" "$work/image"
fi

# The tree, the tests and what they would have built, on a disk of their own.
tree=$work/disk/machine
mkdir -p "$work/disk/bin" "$tree" "$work/disk/built"
chmod 1777 "$work/disk"
git ls-files -co --exclude-standard | tar -cf - --ignore-failed-read -T - 2>/dev/null | tar -xf - -C "$tree"
mkdir -p "$tree/bin"
cp bin/agent "$tree/bin"
[ ! -e bin/machine ] || cp bin/machine "$tree/bin"
cp "$(command -v docker)" "$work/disk/bin/docker"
for p in agent/shim/main $(git ls-files '*/testdata/*/main.go' | sed 's|/main.go||'); do
	go build -trimpath -ldflags '-s -w' -o "$work/disk/built/$(echo $p | tr / _)" ./$p
done
cp -r "$(go list -m -f '{{.Dir}}' github.com/moby/moby/api)" "$work/disk/built/api"
chmod -R u+w "$work/disk/built/api"
cat >"$work/disk/bin/go" <<'END'
#!/bin/sh
# go build -o FILE PACKAGE, of what was built before; go list, of the API's module
[ "$1" != list ] || exec echo /var/tmp/built/api
while [ $# -gt 1 ]; do
	[ "$1" != -o ] || out=$2
	shift
done
p=${1#machine/}
[ "$p" != ./testdata/probe ] || p=agent/shim/testdata/probe
exec cp "/var/tmp/built/$(echo "${p#./}" | tr / _)" "$out"
END
chmod +x "$work/disk/bin/go"
{
	cat <<-'END'
		export PATH=/var/tmp/bin:$PATH GOTMPDIR=/var/tmp MACHINE_VM=1
		fallocate -l 512M /var/tmp/swap && chmod 600 /var/tmp/swap && mkswap -q /var/tmp/swap && swapon /var/tmp/swap
		echo "vm: $(uname -r), $(cat /sys/fs/cgroup/cgroup.controllers)"
		t() {
			cd "/var/tmp/machine/$1" || exit 1
			echo "vm: $1"
			{
				/var/tmp/machine/scripts/dev/isolated.sh ./vm.test -test.v -test.timeout 30m "-test.run=$2" 2>&1
				echo "vm: $1: exit $?"
			} | grep -vE '^=== (RUN|PAUSE|CONT|NAME)'
		}
	END
	for p in $(go list -tags vm -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "$@"); do
		d=${p#"$PWD"/}
		go test -c -tags vm -trimpath -ldflags '-s -w' -o "$tree/$d/vm.test" "./$d"
		echo "t $d '${VM_RUN:-.}'"
	done
	echo 'echo "vm: end"'
} >"$work/disk/run"
mke2fs -q -q -t ext4 -d "$work/disk" "$work/disk.ext4" 8G
rm -rf "$work/disk"
timeout -k 5 "${VM_TIMEOUT:-2400}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -no-reboot -display none -serial stdio \
	-kernel "$base.kernel" -initrd "$base.initrd" -append "console=ttyS0 quiet panic=-1 vm.init=${VM_INIT:-none} ${VM_KERNEL:-}" \
	-device virtio-rng-pci \
	-drive "file=$base.ext4,if=virtio,format=raw,snapshot=on" -drive "file=$work/disk.ext4,if=virtio,format=raw,cache=unsafe" \
	</dev/null >"$work/log" 2>&1 &
vm=$!
trap 'trap "" INT TERM; kill $vm 2>/dev/null || :; wait; rm -rf "$work"' EXIT # timeout hands the signal on
tail -n +1 -s 0.5 -f --pid=$vm "$work/log" | sed -u 's|\r||g' | grep --line-buffered -vE '^ *--- (PASS|SKIP)|^ok$|^PASS$' &
wait $vm || true
wait
sed -i 's|\r||g' "$work/log"
[ -z "${VM_LOG:-}" ] || cp "$work/log" "$VM_LOG"
count() { grep -cE "$1" "$work/log" || true; }
echo "passed $(count '^ *--- PASS'), failed $(count '^ *--- FAIL'), skipped $(count '^ *--- SKIP'), packages not ok $(count '^vm: .*: exit [^0]')"
grep -q '^vm: end' "$work/log" || { echo "vm.sh: the machine did not come to its end" >&2; exit 1; }
[ "$(count '^vm: .*: exit [^0]')" = 0 ]

#!/bin/sh
# busybox-image.sh: writes a root file system made of this computer's static
# busybox, as a tar, to standard output.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
chmod 755 .
mkdir -p bin etc tmp root home var dev proc sys
cp "$(command -v busybox)" bin/busybox
for a in $(bin/busybox --list); do
	[ "$a" = busybox ] || ln -s busybox "bin/$a"
done
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nuser:x:1000:\n' >etc/group
chmod 1777 tmp
tar -cf - .

#!/bin/sh
# journal.sh COMMAND...: run a command with /var/tmp on a fresh ext4 as mkfs
# makes it, in a file. Run it in a mount namespace (isolated.sh), which takes
# the mount away. An ext4 without a journal, as small virtual machines have,
# searches long past every inode that was freed in the last minutes: rates of
# what makes many files would be those of the runs before.
set -e
size=${JOURNAL_GIB:-24}
image=$(mktemp /var/tmp/journal.XXXXXX)
truncate -s "${size}G" "$image"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$image"
loop=$(losetup --direct-io=on -f --show "$image")
rm "$image"
trap 'umount -l /var/tmp; losetup -d "$loop"' EXIT
mount "$loop" /var/tmp
chmod 1777 /var/tmp
"$@"

#!/usr/bin/env bash
# Install a 64-bit ARM Debian in a folder; this x86-64 machine runs it by emulation.
#
#   root.sh DIR [SUITE]      SUITE: bookworm (Python 3.11, the default), trixie (3.13)
#
# Finished steps are skipped. Exit code 2: this machine cannot do it; the message is the reason.
# It changes two things on this machine: it installs Debian's qemu-user-static and debootstrap, and it registers qemu
# with the kernel as the interpreter of ARM programs. To undo the latter: echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64
set -euo pipefail

stop() { echo "root.sh: $*" >&2; exit 2; }
[ $# -ge 1 ] || stop "usage: root.sh DIR [SUITE]"
[ "$(id -u)" = 0 ] || stop "needs root, for debootstrap and chroot. Try it in a virtual machine with Debian"
command -v apt-get >/dev/null || stop "needs Debian: its package qemu-user-static, and its mirror"

command -v qemu-aarch64-static >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static >/dev/null
}
# With flag F the kernel holds qemu open, so that it is also found in a chroot.
table=/proc/sys/fs/binfmt_misc
[ -e $table/register ] || mount -t binfmt_misc binfmt_misc $table ||
    stop "the kernel has no binfmt_misc, or this container may not mount it"
[ -e $table/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >$table/register
grep -q '^flags:.*F' $table/qemu-aarch64 || stop "qemu-aarch64 is registered without flag F"

exec "$(dirname "$0")/../deploy/debian.sh" "$1" arm64 "${2:-bookworm}" python3-pip

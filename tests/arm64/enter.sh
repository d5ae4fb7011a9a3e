#!/usr/bin/env bash
# Run a command in the ARM Debian that root.sh made, on an emulated CPU.
#
#   enter.sh [--offline] [--read FOLDER PLACE]... [--write FOLDER PLACE]... ROOT CPU COMMAND...
#
# CPU is a real core that qemu knows: cortex-a72 (Raspberry Pi 4), cortex-a76 (Raspberry Pi 5). Not "max": the SME
# emulation of qemu 7.2 gives LiteRT wrong int8 answers. FOLDER is mounted at PLACE, read-only unless --write.
# All mounts are in a new namespace, which ends with the command. --offline leaves it without a network.
set -euo pipefail

if [ -z "${ARM64_NAMESPACE:-}" ]; then
    export ARM64_NAMESPACE=1
    case $1 in --offline) shift; exec unshare --mount --net "$0" "$@" ;; esac
    exec unshare --mount "$0" "$@"
fi
folders=()
while [[ $1 == --read || $1 == --write ]]; do folders+=("$1" "$2" "$3"); shift 3; done
root=$(realpath -- "$1") cpu=$2 home=/root
shift 2

cpuinfo() { # the lines of /proc/cpuinfo that programs read, as on a board with this core
    local part variant revision features="fp asimd evtstrm crc32 cpuid" core
    case $cpu in
        cortex-a72) part=0xd08 variant=0x0 revision=3 ;;
        cortex-a76)
            part=0xd0b variant=0x4 revision=1
            features+=" aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
            ;;
        *) echo "enter.sh: unknown core '$cpu'. Known: cortex-a72, cortex-a76" >&2; exit 2 ;;
    esac
    for core in $(seq 0 $(($(nproc) - 1))); do
        printf '%s\t: %s\n' processor "$core" BogoMIPS 108.00 Features "$features" 'CPU implementer' 0x41 \
            'CPU architecture' 8 'CPU variant' $variant 'CPU part' $part 'CPU revision' $revision
        echo
    done
}
mount_file() { # mount a file of this machine, if it exists
    [ -e "$1" ] || return 0
    mkdir -p "$(dirname "$root$2")"
    [ -e "$root$2" ] || : >"$root$2"
    mount --bind "$(realpath "$1")" "$root$2"
}

info=$(mktemp)
trap 'rm -f -- "$info"' EXIT
cpuinfo >"$info"
mount --make-rprivate /
for name in proc sys dev; do mount --rbind /$name "$root/$name"; done
# qemu 7.2 shows the x86 text of this machine, and importing onnxruntime crashes on it.
mount --bind "$info" "$root/proc/cpuinfo"
set -- "${folders[@]}" -- "$@"
while [ "$1" != -- ]; do
    mkdir -p "$root$3"
    mount --bind "$2" "$root$3"
    [ "$1" = --write ] || mount -o remount,bind,ro "$root$3"
    shift 3
done
shift
# pip uses the index and certificates of this machine.
certificates=/etc/ssl/certs/ca-certificates.crt
mount_file /etc/resolv.conf /etc/resolv.conf
mount_file /etc/pip.conf /etc/pip.conf
mount_file "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$home"/.config/pip/pip.conf
mount_file "${PIP_CERT:-$certificates}" $certificates
rm -f -- "$info"
index=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
    [ -z "${!name:-}" ] || index+=("$name=${!name}")
done
exec env -i "${index[@]}" PIP_CERT=$certificates SSL_CERT_FILE=$certificates PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 HOME="$home" LANG=C.UTF-8 \
    PATH=/opt/mri-edge/bin:/usr/sbin:/usr/bin:/sbin:/bin QEMU_CPU="$cpu" \
    chroot "$root" "$@"

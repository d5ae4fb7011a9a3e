#!/usr/bin/env bash
# Install a minimal Debian with Python in a folder, from the Debian mirror of this machine.
#
#   debian.sh DIR ARCHITECTURE SUITE [PACKAGE...]      debian.sh /var/tmp/bare amd64 bookworm systemd-sysv
#
# If it exists already, nothing is done. Exit code 2: this machine cannot do it; the message is the reason.
set -euo pipefail

stop() { echo "$(basename "$0"): $*" >&2; exit 2; }
[ $# -ge 3 ] || stop "usage: $0 DIR ARCHITECTURE SUITE [PACKAGE...]"
root=$(realpath -m -- "$1") architecture=$2 suite=$3
shift 3
[ "$root" != / ] || stop "DIR must not be /"
[ "$(id -u)" = 0 ] || stop "needs root, for debootstrap and chroot. Try it in a virtual machine with Debian"
command -v apt-get >/dev/null || stop "needs Debian, for its packages and its mirror"
[ ! -e "$root/var/lib/dpkg/status" ] || exit 0
[ ! -e "$root" ] || [ -z "$(ls -A "$root")" ] || stop "$root is neither empty nor a Debian"

command -v debootstrap >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
}
here=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016 # apt replaces it
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $here" | sed -n 1p)
[ -n "$mirror" ] || stop "no Debian mirror in the apt sources (apt-get update first)"
mkdir -p "$(dirname "$root")"
# It is built in a temporary folder and then renamed, so that an interrupted run leaves no incomplete Debian.
made=$(mktemp -d -p "$(dirname "$root")" debian.XXXXXX)
trap 'rm -rf --one-file-system -- "$made"' EXIT
echo "debootstrap $suite $architecture: some minutes" >&2
packages=$(IFS=,; echo "python3,python3-venv,ca-certificates${*:+,$*}")
unshare --mount debootstrap --arch="$architecture" --variant=minbase --include="$packages" "$suite" "$made/debian" \
    "$mirror" >"$made/log" 2>&1 || { tail -n 5 "$made/log" >&2; stop "debootstrap failed"; }
rm -f -- "$made"/debian/var/cache/apt/archives/*.deb
[ ! -d "$root" ] || rmdir -- "$root"
mv -- "$made/debian" "$root"

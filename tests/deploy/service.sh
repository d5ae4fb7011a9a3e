#!/usr/bin/env bash
# Boot a Debian in a container, install the service there with the commands of deploy/README.md, and use it.
#
#   sudo bash tests/deploy/service.sh [DIR]      DIR: where the Debian is kept (/var/tmp/mri-edge-service)
#
# A user brings scans and a broken file; the service is killed, restarts, and is stopped. Needs root, Debian and the
# package index; installs systemd-container. Exit code: 0 passed, 1 failed, 2 this machine cannot do it.
set -euo pipefail

folder=${1:-/var/tmp/mri-edge-service} checkout=$(realpath "$(dirname "$0")/../..")
root=$folder/root
"$checkout/tests/deploy/debian.sh" "$folder/bare" "$(dpkg --print-architecture)" bookworm systemd-sysv dbus sudo
command -v systemd-nspawn >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd-container >/dev/null

rm -rf --one-file-system -- "$root"
cp -a "$folder/bare" "$root"
for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt /etc/apt/sources.list; do
    [ ! -e $file ] || cp --remove-destination "$(realpath $file)" "$root$file"
done
mkdir "$root/src"
(cd "$checkout" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar c --ignore-failed-read) | tar x -C "$root/src"
# The commands of the page, without their prompts.
sed -n '/^<!-- install -->/,/^```$/ s/^\$ //p' "$checkout/deploy/README.md" >"$root/install.sh"
[ -s "$root/install.sh" ] || { echo "service.sh: deploy/README.md has no block after <!-- install -->" >&2; exit 1; }

cat >"$root/use.sh" <<'USE'
set -eux
cd /src
bash -eux /install.sh
id anna || useradd --create-home --groups mri-edge anna
wait_for() { for _ in $(seq 240); do [ -e "$1" ] && return; sleep 0.5; done; echo "missing after two minutes: $1"; exit 1; }
main() { systemctl show --property MainPID --value mri-edge-watch; }
out=/var/lib/mri-edge/out
runuser -u anna -- cp /src/examples/phantom-1.jpg /src/examples/mni152-slice-1.jpg /var/lib/mri-edge/in/
runuser -u anna -- sh -c 'echo no picture >/var/lib/mri-edge/in/broken.jpg'
wait_for $out/done/phantom-1.jpg
wait_for $out/done/mni152-slice-1.jpg
wait_for $out/failed/broken.jpg
runuser -u anna -- grep '"label": "tumour"' $out/results/phantom-1.jpg.json
runuser -u anna -- grep '"label": "no tumour"' $out/results/mni152-slice-1.jpg.json
# The service cannot gain rights and has no network.
grep -E 'NoNewPrivs:\s1|Seccomp:\s2|CapBnd:\s0+$' /proc/"$(main)"/status | wc -l | grep -x 3
grep VmHWM /proc/"$(main)"/status
nsenter --target "$(main)" --net ip -brief address 2>/dev/null || true
before=$(main)
kill -KILL "$before"
runuser -u anna -- cp /src/examples/phantom-2.jpg /var/lib/mri-edge/in/
wait_for $out/done/phantom-2.jpg
test "$(main)" != "$before"
test "$(ls $out/results | wc -l)" = 4
systemctl stop mri-edge-watch
systemctl show --property Result --value mri-edge-watch | grep -x success
systemctl show --property ExecMainStatus --value mri-edge-watch | grep -x 0
systemd-analyze security --no-pager mri-edge-watch | tail -n 1
echo PASSED
USE
cat >"$root/etc/systemd/system/use.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=1200
ExecStart=/bin/bash /use.sh
ExecStopPost=/bin/systemctl poweroff --no-block
StandardOutput=file:/use.log
StandardError=append:/use.log
UNIT
ln -sf /etc/systemd/system/use.service "$root/etc/systemd/system/multi-user.target.wants/use.service"
echo "booting; the log is $root/use.log" >&2
timeout 1500 systemd-nspawn --quiet --directory "$root" --boot --register=no --keep-unit --resolv-conf=off --console=pipe \
    </dev/null >"$folder/console.log" 2>&1 || true
if ! grep -qx 'PASSED' "$root/use.log"; then
    tail -n 20 "$root/use.log" >&2
    echo "service.sh: FAILED" >&2
    exit 1
fi
grep -E '^VmHWM|^→' "$root/use.log"
echo "service.sh: passed"

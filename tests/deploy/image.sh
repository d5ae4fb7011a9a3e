#!/usr/bin/env bash
# Build deploy/Dockerfile with buildah on a minimal Debian instead of the Python image, and run it.
#
#   sudo bash tests/deploy/image.sh [DIR]      DIR: where the Debian is kept (/var/tmp/mri-edge-image)
#
# For machines that cannot reach a container registry. Needs root, Debian and the package index; installs buildah.
set -euo pipefail

folder=${1:-/var/tmp/mri-edge-image} checkout=$(realpath "$(dirname "$0")/../..")
"$checkout/tests/deploy/debian.sh" "$folder/bare" "$(dpkg --print-architecture)" bookworm
command -v buildah >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah >/dev/null
# These settings also work in a container, and leave the images of this machine unchanged.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
buildah() { command buildah --root "$folder/storage" --runroot "$folder/run" "$@"; }
certificates=/etc/ssl/certs/ca-certificates.crt

base=$(buildah from scratch)
mounted=$(buildah mount "$base")
cp -a "$folder/bare/." "$mounted/"
# pip uses the index and certificates of this machine.
cp "$(realpath $certificates)" "$mounted$certificates"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$mounted/etc/pip.conf"
buildah unmount "$base" >/dev/null
buildah config --env PIP_CERT=$certificates "$base"
buildah commit --quiet --rm "$base" localhost/bare >/dev/null
buildah build --pull-never --format docker --build-arg BASE=localhost/bare --file "$checkout/deploy/Dockerfile" \
    --tag mri-edge "$checkout"

container=$(buildah from --pull-never localhost/mri-edge)
trap 'buildah rm "$container" >/dev/null; rm -rf --one-file-system -- "$folder/storage" "$folder/run"' EXIT
buildah run --volume "$checkout/examples:/scans:ro" "$container" -- mri-edge predict /scans
buildah run "$container" -- mri-edge verify # the health check
# shellcheck disable=SC2016 # the shell in the container expands it
buildah run "$container" -- sh -c 'test "$(id -u)" = 10001 && test ! -e /src && ! command -v pip && touch /data/mine'
buildah images
echo "image.sh: passed"

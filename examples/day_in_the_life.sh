#!/usr/bin/env bash
# A day of a volume on this machine, an S3 store and Kubo: the store dies in the middle of
# a copy and comes back; Kubo's repository is lost; the machine's disk is lost. In the end
# every byte is compared. Real servers on loopback (scripts/services); about a minute.
#   examples/day_in_the_life.sh [DIRECTORY-TO-COPY]
# CAIRN_BIN: the cairn (default target/debug/cairn).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export CAIRN_BIN=${CAIRN_BIN:-${CARGO_TARGET_DIR:-$root/target}/debug/cairn}
tree=${1:-$root/src}
day=$(mktemp -d)
export CAIRN_SERVICES_DIR=$day/services CAIRN_SERVICES_PORT=${CAIRN_SERVICES_PORT:-17500}
services=$root/scripts/services
cairn() { "$CAIRN_BIN" "$@"; }
evening() {
    cairn umount "$day/data" --force >/dev/null 2>&1 || true
    "$services" lose s3 kubo >/dev/null 2>&1 || true
    rm -rf "$day"
}
trap evening EXIT
hour() { printf '\n== %s\n' "$*"; }
# A field of the state of a backend, or of the volume.
of() { cairn status --volume "$day/volume" --json | python3 -c "
import json, sys
status = json.load(sys.stdin)
backend = {one['id']: one for one in status['backends']}
print($1)"; }
# Waits until it is so; ten minutes are too long.
until_is() {
    for ((i = 0; i < 1200; i++)); do
        [ "$(of "$1")" != "$2" ] || return 0
        sleep 0.5
    done
    echo "after ten minutes it is not so: $1 is $(of "$1"), and not $2" >&2
    cairn status --volume "$day/volume" >&2
    exit 1
}
same() { diff -r "$tree" "$day/data/$1" && echo "$1: every byte is the same"; }

hour '08:00 an S3 store, Kubo, and a volume that keeps three copies'
"$services" up s3 kubo
url() { "$services" status "$1" | cut -f3; }
s3="$(url s3)&id=s3&domain=s3" ipfs="$(url kubo)?id=kubo&domain=kubo"
cairn init --volume "$day/volume" --backend "$s3" --backend "$ipfs" \
    --policy min=2,target=3,max=3,level=QUORUM
mkdir "$day/data"
cairn mount "$day/data" --volume "$day/volume"

hour '09:00 a copy, and in the middle of it the S3 store dies'
cp -a "$tree" "$day/data/morning" &
copying=$!
until [ -n "$(ls -A "$day/data/morning" 2>/dev/null)" ]; do sleep 0.05; done
"$services" kill s3
wait "$copying"
echo 'the copy went on'
cp -a "$tree" "$day/data/noon"
same noon
until_is "backend['s3']['state']" down
cairn status --volume "$day/volume"

hour '13:00 the store is back, and gets what it lacks'
"$services" up s3 >/dev/null
cairn backend recover s3 --volume "$day/volume"
cairn heal --wait --volume "$day/volume"
until_is "status['pins']['below_target'] + status['pins']['below_min']" 0
echo "copies in the store: $(of "backend['s3']['copies']")"

hour '16:00 the repository of Kubo is lost, and a new one is in its place'
"$services" lose kubo
"$services" up kubo >/dev/null
until_is "backend['kubo']['state']" up
cairn pin verify "$day/data" --backend kubo --wait || echo "(exit code $?: what is lost there is told)"
cairn heal --wait --volume "$day/volume"
until_is "status['pins']['below_target'] + status['pins']['below_min']" 0
echo "copies in Kubo: $(of "backend['kubo']['copies']")"
cairn events --volume "$day/volume" --severity warning --limit 5

hour '18:00 the last checkpoint goes out, and the disk of this machine is lost'
cairn checkpoint --now --volume "$day/volume"
cairn umount "$day/data" --force >/dev/null
rm -rf "$day/volume"

hour '19:00 a new disk: all comes back from the S3 store alone'
"$services" kill kubo
cairn recover --from "$s3" --volume "$day/volume"
cairn mount "$day/data" --volume "$day/volume"
same morning
same noon
hour 'the day ended well'

#!/usr/bin/env bash
# bash web/vendor.sh: the files of onnxruntime-web that the page loads come to web/vendor/, compared with vendor.sha256.
set -euo pipefail
cd "$(dirname "$0")"
version=1.30.0 # as in package-lock.json
part=$(mktemp -d .vendor.XXXXXX)
trap 'rm -rf "$part"' EXIT
npm pack --silent --pack-destination "$part" "onnxruntime-web@$version" > /dev/null
tar -xzf "$part"/*.tgz -C "$part"
mkdir "$part/vendor"
while read -r _ name; do mv "$part/package/dist/$name" "$part/vendor/"; done < vendor.sha256
sum=$(command -v sha256sum || echo "shasum -a 256")
(cd "$part/vendor" && $sum --check --status ../../vendor.sha256) || { echo "error: onnxruntime-web $version is not what vendor.sha256 describes" >&2; exit 1; }
rm -rf vendor
mv "$part/vendor" vendor

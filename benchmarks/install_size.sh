#!/bin/sh
# Measures what `pip install` takes on disk: the packages of a fresh virtual environment, without pip itself.
#
#     benchmarks/install_size.sh                # dr_keras alone, then with the extra `train`
#     benchmarks/install_size.sh serve all      # with each of these extras
#
# PYTHON names another interpreter (3.11 or newer).
set -eu
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

megabytes() {
    folder=$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    du --summarize --block-size=1MB --exclude='pip' --exclude='pip-*' --exclude='setuptools*' "$folder" | cut -f1
}

for extra in ${*:-none train}; do
    "${PYTHON:-python3}" -m venv --clear "$place/venv"
    what=.
    [ "$extra" = none ] || what=".[$extra]"
    "$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$what"
    echo "pip install '$what': $(megabytes) MB"
done

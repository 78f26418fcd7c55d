#!/bin/sh
# Makes .venv from the hashed lock: with uv where it is installed, else with venv and pip.
# Does nothing, quickly, when neither the lock nor the project file has changed since.
set -eu
cd "$(dirname "$0")/.."

LOCK=requirements-dev.txt
STAMP=.venv/.set-up
INSTALLING="installing into .venv (once; about a minute with pip)"

say() { echo "set-up: $*" >&2; }

fingerprint() { cat "$LOCK" pyproject.toml tools/set_up.sh | cksum; }

# The first Python of 3.11 or later that can start: a shim may name a version that is not there.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    say "needs Python 3.11 or later and found none: on Debian, apt install python3 python3-venv"
    return 1
}

with_uv() {
    say "$INSTALLING"
    [ -x .venv/bin/python ] || uv venv --quiet --no-config --python "$1" .venv
    uv pip install --quiet --python .venv/bin/python --require-hashes -r "$LOCK"
    uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
}

with_pip() {
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
        if ! "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            say "Python's venv module is missing: on Debian, apt install python3-venv"
            return 1
        fi
        "$1" -m venv --clear .venv
    fi
    say "$INSTALLING"
    set -- .venv/bin/python -m pip --disable-pip-version-check --quiet --quiet install
    "$@" --require-hashes -r "$LOCK"
    "$@" --no-deps --no-build-isolation --editable .
}

if [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null || true)" = "$(fingerprint)" ]; then
    exit 0
fi
python=$(find_python)
# An environment of another, older Python, or one whose Python is gone, is made again.
if [ -e .venv ] && ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    rm -rf .venv
fi
rm -f "$STAMP"
if command -v uv >/dev/null 2>&1; then with_uv "$python"; else with_pip "$python"; fi
fingerprint >"$STAMP"

#!/usr/bin/env bash
# Print a Python 3.12 or 3.13, which `make sanitize` needs, or say how to get one: SANITIZE_PYTHON where it is set, what
# is on PATH, what pyenv has installed.
set -euo pipefail

works() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2>/dev/null
}

if [[ -n ${SANITIZE_PYTHON:-} ]]; then
    candidates=("$SANITIZE_PYTHON")
else
    candidates=(python3.12 python3.13 python3 python)
    for version in 3.12 3.13; do
        if prefix=$(pyenv prefix "$version" 2>/dev/null); then candidates+=("$prefix/bin/python$version"); fi
    done
fi
for candidate in "${candidates[@]}"; do
    if works "$candidate"; then
        echo "$candidate"
        exit
    fi
done
echo "no Python 3.12 or 3.13 with venv among ${candidates[*]}: install one (apt install python3.12-venv, or" \
    "pyenv install 3.12), or name one: SANITIZE_PYTHON=/path/to/python3.12" >&2
exit 1

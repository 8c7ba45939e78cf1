#!/usr/bin/env bash
# Installs the lock into the ACTIVE environment (a venv, or the one Transformer Lab made for this plugin).
# torch is named exactly, because a range on an empty environment takes gigabytes of CUDA packages; one that is already there is kept
# when it is in our range. Quick when repeated. `setup.sh --dev` adds what tests, checks and the demo need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TORCH="torch==2.13.0"
TORCH_AT_LEAST="2.10"
PYTHON="${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/}python"

locks=(requirements.txt)
[ "${1:-}" = "--dev" ] && locks+=(requirements-dev.txt)

digest=$(cat setup.sh "${locks[@]}" | sha256sum | cut -c1-16)
stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.diffusion_llm_trainer-${#locks[@]}-$digest"

# Prints what is not as the locks say, and fails then. A host may have put its own pins over a set-up that was whole.
differences() {
    "$PYTHON" - "$TORCH_AT_LEAST" "${locks[@]}" <<'PY'
import re
import sys
from importlib import metadata

least, *locks = sys.argv[1:]


def version(name):
    try:
        return metadata.version(name) or "missing"  # None of a package that lost its files
    except metadata.PackageNotFoundError:
        return "missing"


def too_old(found):
    return found == "missing" or [int(part) for part in re.findall(r"\d+", found)[:2]] < [int(part) for part in least.split(".")]


wrong = [f"torch {version('torch')}"] if too_old(version("torch")) else []
for lock in locks:
    for line in open(lock, encoding="utf-8"):
        name, _, pin = line.partition("#")[0].strip().partition("==")
        if pin and version(name).partition("+")[0] != pin:
            wrong.append(f"{name} {version(name)}")
print(*wrong, sep="\n")
sys.exit(bool(wrong))
PY
}

if [ -f "$stamp" ] && differences >/dev/null; then
    echo "setup: nothing to do"
    exit 0
fi

if command -v uv >/dev/null 2>&1; then
    # uv ignores pip's configuration: a local folder of wheels has to be named to it. A folder that is missing is an error there.
    links="${PIP_FIND_LINKS:-$("$PYTHON" -m pip config get global.find-links 2>/dev/null || true)}"
    if [ -n "$links" ] && [ -d "$links" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"; fi
    install() { uv pip install --python "$PYTHON" --quiet "$@"; }
elif "$PYTHON" -m pip --version >/dev/null 2>&1; then
    install() { "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"; }
else
    echo "setup: neither uv nor pip is here; install one of them and run this again" >&2
    exit 1
fi

echo "setup: installing into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
packages=("${locks[@]/#/-r}")
case "$(differences || true)" in torch\ *) packages=("$TORCH" "${packages[@]}") ;; esac
rm -f "$stamp" # what was whole may be so no longer when this is cut short
install "${packages[@]}" # one call: what cannot be found or fetched fails before anything is replaced
touch "$stamp" # last: an installation that failed half-way is repeated
echo "setup: done"

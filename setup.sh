#!/usr/bin/env bash
# Installs the lock into the ACTIVE environment (a venv, or the one Transformer Lab made for this plugin).
# torch comes first and exactly, because a range on an empty environment takes gigabytes of CUDA packages; a torch already there
# is kept when it is in our range. Quick when repeated. `setup.sh --dev` adds what tests, checks and the demo need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TORCH="torch==2.13.0"
TORCH_AT_LEAST="2.10"
PYTHON="${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/}python"

locks=(requirements.txt)
[ "${1:-}" = "--dev" ] && locks+=(requirements-dev.txt)

digest=$(cat setup.sh "${locks[@]}" | sha256sum | cut -c1-16)
stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.diffusion_llm_trainer-${#locks[@]}-$digest"
if [ -f "$stamp" ]; then
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

has_torch() {
    "$PYTHON" - "$TORCH_AT_LEAST" <<'PY'
import sys
from importlib import metadata

try:
    have = tuple(int(part) for part in metadata.version("torch").split("+")[0].split(".")[:2])
except metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit(have < tuple(int(part) for part in sys.argv[1].split(".")))
PY
}

echo "setup: installing into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
has_torch || install "$TORCH"
install "${locks[@]/#/-r}"
touch "$stamp" # last: an installation that failed half-way is repeated
echo "setup: done"

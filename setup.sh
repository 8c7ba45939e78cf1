#!/usr/bin/env bash
# Installs the lock into the ACTIVE environment (a venv, or the one Transformer Lab made for this plugin): files whose hashes are in it
# and no others, from whatever index or folder pip or uv is configured to use.
# torch, and what torch itself asks for, is the exception: each machine has another build of it. It is named exactly, because a range on
# an empty environment takes gigabytes of CUDA packages; one that is already there is kept when it is in our range. What was built against another torch is removed: it breaks every program that imports transformers.
# Quick when repeated. `setup.sh --studio` adds what `main.py studio` needs, `--dev` also what tests, checks and the demo need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TORCH="torch==2.13.0"
TORCH_AT_LEAST="2.10"
PYTHON="${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/}python"

locks=(requirements.txt)
case "${1:-}" in --studio) locks+=(requirements-studio.txt) ;; --dev) locks+=(requirements-studio.txt requirements-dev.txt) ;; esac

digest=$(cat setup.sh "${locks[@]}" | sha256sum | cut -c1-16)
stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.diffusion_llm_trainer-${#locks[@]}-$digest"

# `look differences` prints what is not as the locks say, one a line, and fails then: a host may have put its own pins over a set-up
# that was whole. `look misfits` prints the names of packages that were built against another torch than the one that is here.
look() {
    "$PYTHON" - "$1" "$TORCH_AT_LEAST" "${locks[@]}" <<'PY'
import re
import sys
from importlib import metadata

question, least, *locks = sys.argv[1:]


def version(name):
    try:
        return metadata.version(name) or "missing"  # None of a package that lost its files
    except metadata.PackageNotFoundError:
        return "missing"


def release(text):
    return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]


def wanted_torch(package):
    """Return the exact version of torch that a package requires, or "" if it takes several."""
    for requirement in package.requires or ():
        needs, _, marker = requirement.partition(";")
        found = re.fullmatch(r"torch\s*\(?\s*===?\s*([\w.+*]+)\s*\)?\s*", needs)
        if found and "extra" not in marker:
            return found[1]
    # Wheels that compile against torch and do not say so in their requirements: flash_attn 2.8.3+cu12torch2.9cxx11abiTRUE,
    # torch_scatter 2.1.2+pt29cu126.
    found = re.search(r"\+.*?(?:torch|pt)(\d)\.?(\d+)", package.version or "")
    return f"{found[1]}.{found[2]}.*" if found else ""


def fits(wanted, torch):
    if not wanted:
        return True
    parts = release(wanted)
    return release(torch)[: len(parts)] == parts if "*" in wanted else release(torch) == parts


torch = version("torch")
misfits = {}
for package in metadata.distributions() if torch != "missing" else ():
    if not fits(wanted := wanted_torch(package), torch):
        misfits[package.metadata["Name"]] = f"{package.version} for torch {wanted}"
if question == "misfits":
    print(*misfits, sep="\n")
    sys.exit()

wrong = [f"torch {torch}"] if torch == "missing" or release(torch)[:2] < release(least) else []
for lock in locks:
    for line in open(lock, encoding="utf-8"):
        name, _, pin = line.partition("#")[0].rstrip("\\ \n").partition("==")
        if pin and version(name).partition("+")[0] != pin:
            wrong.append(f"{name} {version(name)}")
wrong += [f"{name} {built}" for name, built in misfits.items()]
print(*wrong, sep="\n")
sys.exit(bool(wrong))
PY
}

# Imports what every program of ours imports before it works, and fails with one line. Also writes its bytecode.
try_imports() {
    "$PYTHON" - <<'PY'
import sys

try:
    import transformers

    import plugin.commands.chat.__main__
    import plugin.commands.compare
    import plugin.commands.evaluate
    import plugin.commands.export
    import plugin.commands.fuse
    import plugin.commands.plan.__main__
    import plugin.commands.plot
    import plugin.commands.probe
    import plugin.commands.sample
    import plugin.corpus.prepare
    import plugin.data.bulk_tokenizer
    import plugin.worker.__main__
    from plugin.config.families import ARCHITECTURES

    for name in ARCHITECTURES:
        getattr(transformers, name, None)  # transformers imports a model's code when its class is first asked for
except Exception as error:
    causes = []
    while error:
        causes.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    sys.exit(f"setup: failed, for the programs cannot be imported: {causes[-1]}" + (f" ({causes[0]})" if causes[1:] else ""))
PY
}

if [ -f "$stamp" ] && look differences >/dev/null; then
    echo "setup: nothing to do"
    exit 0
fi

if command -v uv >/dev/null 2>&1; then
    # uv ignores pip's configuration: a local folder of wheels has to be named to it. A folder that is missing is an error there.
    links="${PIP_FIND_LINKS:-$("$PYTHON" -m pip config get global.find-links 2>/dev/null || true)}"
    if [ -n "$links" ] && [ -d "$links" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"; fi
    install() { uv pip install --python "$PYTHON" --quiet "$@"; }
    remove() { uv pip uninstall --python "$PYTHON" --quiet "$@"; }
elif "$PYTHON" -m pip --version >/dev/null 2>&1; then
    install() { "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"; }
    remove() { "$PYTHON" -m pip uninstall --quiet --yes --disable-pip-version-check "$@"; }
else
    echo "setup: neither uv nor pip is here; install one of them and run this again" >&2
    exit 1
fi

echo "setup: installing into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
rm -f "$stamp" # the environment may be incomplete when this is interrupted
install --require-hashes --no-deps "${locks[@]/#/-r}" # one call, and first: what cannot be had fails before anything is replaced
case "$(look differences || true)" in torch\ *) install "$TORCH" ;; esac # its own requirements that the lock holds are there already
misfits=$(look misfits)
if [ -n "$misfits" ]; then
    echo "setup: removing what was built for another torch: ${misfits//$'\n'/, }"
    # shellcheck disable=SC2086 # one word a name
    remove $misfits
fi
# uv leaves packages without bytecode, and a host's first job would wait for it. A file that is no Python of this version is no fault.
"$PYTHON" -m compileall -qq -j 0 plugin main.py "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true
try_imports
touch "$stamp" # last: an installation that failed half-way is repeated
echo "setup: done"

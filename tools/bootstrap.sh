#!/bin/sh
# Makes the virtual environment .venv, and with --system installs the Debian packages that running
# containers needs; with --tests also those that only tests need. Called by make; safe to run again:
# it does only what is missing.
#
#   tools/bootstrap.sh [--system] [--tests]
set -eu
cd "$(dirname "$0")/.."

system=no
tests=no
for argument in "$@"; do
    case "$argument" in
    --system) system=yes ;;
    --tests) tests=yes ;;
    *) echo "bootstrap: unknown argument $argument" >&2; exit 2 ;;
    esac
done

say() { echo "==> $*" >&2; }

as_root() { [ "$(id -u)" = 0 ]; }

apt_ready=no
install_packages() {
    if ! as_root || ! command -v apt-get >/dev/null 2>&1; then
        return 1
    fi
    if [ "$apt_ready" = no ]; then
        say "reading Debian's package lists"
        apt-get update -qq >&2
        apt_ready=yes
    fi
    say "installing Debian packages: $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

make_venv() {
    python=$(find_python) || {
        say "Python 3.11 or later is needed, and was not found; set PYTHON to its path"
        exit 1
    }
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages python3-venv || {
            say "$python cannot make virtual environments; install the package python3-venv"
            exit 1
        }
    fi
    say "making the virtual environment .venv with $($python --version)"
    "$python" -m venv --clear .venv
}

# The stamp names what was installed: another pyproject.toml or more extras install again.
want="$(cksum <pyproject.toml) tests=$tests"
have="$(cat .venv/.installed 2>/dev/null || true)"
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    make_venv
    have=""
fi
if [ "$have" != "$want" ] && [ "$have" != "$(cksum <pyproject.toml) tests=yes" ]; then
    extras="agent,orchestrator,edgectl"
    [ "$tests" = no ] || extras="dev"
    say "installing Polder and its Python dependencies ($extras) into .venv"
    # Plain .pth editing keeps edgectl's start fast: no import hook runs at every start.
    if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input \
        --config-settings editable_mode=compat -e ".[$extras]" >.venv/pip.log 2>&1; then
        tail -n 30 .venv/pip.log >&2
        say "installing failed; the whole log is in .venv/pip.log"
        exit 1
    fi
    echo "$want" >.venv/.installed
fi

if [ "$system" = yes ]; then
    packages=$(.venv/bin/python -c \
        'from devcluster import preflight as p; print(*p.packages(p.missing()))')
    if [ "$tests" = yes ]; then
        # The tests start an etcd and a registry of their own: Debian's services have no part in it.
        packages="$packages $(.venv/bin/python -c \
            'from devcluster import preflight as p
print(*p.packages(p.missing_etcd() + p.missing_netns() + p.missing_registry()
    + p.missing_spin() + p.missing_faketime() + p.missing_emulation() + p.missing_images()))')"
        packages="${packages# }"
        packages="${packages% }"
    fi
    if [ -n "$packages" ]; then
        # shellcheck disable=SC2086 # one word per package
        install_packages $packages || say "as root, run: apt-get install $packages"
    fi
fi

if [ "$tests" = yes ] && command -v go >/dev/null 2>&1; then
    tools/kube_tools.sh helm >&2 || say "helm could not be built: tests of the chart are left out"
fi

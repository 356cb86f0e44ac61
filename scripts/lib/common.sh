# Shared by the scripts here; sourced, not run. Callers have `set -euo pipefail`.

say() { printf '\033[1m==>\033[0m %s\n' "$*" | if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGE...: installs those that are missing, if this host has apt and we may.
# Those installed by this call are left in the array INSTALLED.
INSTALLED=()
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || { say "not Debian: please install yourself: ${missing[*]}"; return 0; }
    [ "$(id -u)" = 0 ] || { say "not root: please install yourself: ${missing[*]}"; return 0; }
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null; } ||
        return 1
    INSTALLED+=("${missing[@]}")
}

need_rust() {
    command -v cargo >/dev/null || fail "there is no Rust toolchain: install one from https://rustup.rs and run this again"
}

# Where cargo puts things.
target_dir() { realpath -m "${CARGO_TARGET_DIR:-target}"; }

# build_berth: the release build of all programs, side by side; prints their directory. BERTH_BIN names
# a directory that has them already.
build_berth() {
    local out runtime program
    if [ -n "${BERTH_BIN:-}" ]; then
        realpath "$BERTH_BIN"
        return
    fi
    out="$(target_dir)/release"
    cargo build --quiet --release --package berth
    runtime="$(scripts/build-runtime)"
    for program in berth-oci berth-vmm berth-agent; do
        if ! cmp -s "${runtime%/*}/$program" "$out/$program"; then
            # Not in place: a running shim or machine executes the old file.
            install -m 0755 "${runtime%/*}/$program" "$out/$program.new"
            mv "$out/$program.new" "$out/$program"
        fi
    done
    echo "$out"
}

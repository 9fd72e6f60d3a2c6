# Shared by the scripts beside this file; they source it.
# shellcheck shell=sh

# The oldest Rust that builds Bramble (Cargo.toml, rust-version).
RUST_MIN=1.90

say() { printf '== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "run this as root: it mounts filesystems (sudo $0 $*)"
}

# need_packages PACKAGE...: installs those that are missing, on Debian and its relatives.
need_packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "please install:$missing (no apt-get on this machine to do it)"
    say "installing$missing"
    # The lists may be missing or old, or they may be fine and the network down: only the install decides.
    apt-get -q update >/dev/null 2>&1 || true
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >/dev/null ||
        die "apt-get could not install:$missing"
}

# As need_packages, for packages with services, which are not started. They are if the machine is booted again.
need_packages_unstarted() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        need_packages "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    need_packages "$@"
    rm -f "$policy"
    trap - EXIT
}

# Debian 12's own Rust is too old, and a toolchain is the user's choice: say what is needed, install nothing.
need_rust() {
    [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$have" ] && [ "$(printf '%s\n' "$RUST_MIN" "$have" | sort -V | head -n1)" = "$RUST_MIN" ] ||
        die "Rust $RUST_MIN or newer is needed, and this machine has ${have:-none}: install it with rustup (https://rustup.rs), then run this again"
}

need_fuse() {
    [ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || die "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse); in a container, pass the device in"
}

# triple ARCH: what Rust calls a Debian architecture.
triple() {
    case $1 in
        amd64) echo x86_64-unknown-linux-gnu ;;
        arm64) echo aarch64-unknown-linux-gnu ;;
        *) die "no support for the architecture $1" ;;
    esac
}

# need_cross ARCH: what compiling for a foreign ARCH takes, with Debian's own Rust; sets $gnu, and $emulator, which runs what was
# built. The emulator must find one C library only: with -L /usr/$gnu it takes the loader of libc6-ARCH-cross and the
# library of libc6:ARCH, and the first thread that ends leaves a list on which the next one spins for ever.
need_cross() {
    command -v dpkg >/dev/null || die "this machine has no dpkg: programs for another kind of machine are built on Debian"
    [ "$(dpkg --print-architecture)" != "$1" ] || die "this machine is $1 itself, and needs no cross-compiler: run scripts/test"
    gnu=$(triple "$1" | sed s/-unknown//)
    if ! dpkg --print-foreign-architectures | grep -q -x "$1"; then
        [ "$(id -u)" = 0 ] || die "run this as root once: packages for $1 are needed (dpkg --add-architecture $1)"
        dpkg --add-architecture "$1"
    fi
    need_packages rustc-web "libstd-rust-web-dev:$1" "libc6:$1" "libgcc-s1:$1" \
        "gcc-$(echo "$gnu" | sed s/_/-/)" "libc6-dev-$1-cross" qemu-user-static
    export RUSTC=/usr/bin/rustc
    variable=CARGO_TARGET_$(triple "$1" | tr 'a-z-' 'A-Z_')
    emulator="qemu-${gnu%%-*}-static"
    export "${variable}_LINKER=$gnu-gcc" "${variable}_RUNNER=$emulator"
}

# What this repository's scripts need beside Rust, and the Debian packages it is in.
# Sourced, not run, by demo, tests/run, .ci/run and ci/deb:
#
#   . tools/needs.sh
#   need build          a linker, and certificates for cargo
#   need build tests    also what the tests compare with and act upon
#   need build deb      also what a Debian package is made with
#   own_target          have cargo build where this user may write
#
# What is there costs a fraction of a second. As root the rest is installed where there
# is apt-get; else one line says what to install, and the script ends.

refuse() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# A line each: for what, the package, and a command that succeeds when it is there.
needs() {
    cat <<'NEEDS'
build gcc command -v cc
build libc6-dev links
build ca-certificates certificates
tests iproute2 command -v ip
tests iproute2 command -v ss
tests iptables command -v iptables
tests nftables command -v nft
tests curl command -v curl
tests python3-minimal command -v python3
tests procps command -v ps
tests util-linux command -v unshare
tests util-linux command -v nsenter
tests util-linux command -v prlimit
tests util-linux command -v setpriv
deb dpkg-dev command -v dpkg-shlibdeps
deb systemd command -v systemd-analyze
deb python3-minimal command -v python3
NEEDS
}

# Whether a program can be compiled and linked. A compiler alone cannot do it:
# Debian's gcc comes without the C library's start files (libc6-dev).
links() {
    local out
    out=$(mktemp -d) || return
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' |
        cc -x c - -o "$out/trivial" && "$out/trivial"
    local status=$?
    rm -rf "$out"
    return $status
}

# Whether there are certificates to know the registry of crates by.
certificates() {
    local file
    for file in "${SSL_CERT_FILE:-}" "${CARGO_HTTP_CAINFO:-}" /etc/ssl/certs/ca-certificates.crt \
        /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
        [ -s "$file" ] && return
    done
    return 1
}

# The packages that are missing for the given uses.
missing() {
    local use package check
    while read -r use package check; do
        case " $* " in *" $use "*) $check >/dev/null 2>&1 </dev/null || echo "$package" ;; esac
    done < <(needs) | sort -u
}

need() {
    # Debian keeps ip, iptables and nft where an ordinary user does not look.
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

    [ "$(uname -s)" = Linux ] || refuse "network namespaces are a Linux thing"
    # rustup's own place, where a shell that was open before does not look.
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    command -v cargo >/dev/null || refuse "no cargo in PATH; install Rust 1.88 or later"

    local packages
    packages=$(missing "$@" | xargs)
    [ -n "$packages" ] || return 0
    # With what is recommended, gcc comes with fonts and half of X.
    local install="apt-get install --no-install-recommends $packages"
    [ "$(id -u)" = 0 ] || refuse "first, as root: apt-get update && $install"
    command -v apt-get >/dev/null || refuse "install these first (named as in Debian): $packages"

    echo "$0: installing $packages" >&2
    local log
    log=$(mktemp)
    # shellcheck disable=SC2086  # a list
    {
        DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive $install -y -qq
    } >"$log" 2>&1 </dev/null || {
        cat "$log" >&2
        refuse "apt-get install failed: $packages"
    }
    rm -f "$log"
    packages=$(missing "$@" | xargs)
    [ -z "$packages" ] || refuse "installed, and still not usable: $packages"
}

# In a clone of another user, or where root has built before, the build goes to a folder of
# this user: so neither is stopped by the other's files, and root leaves none in the way.
own_target() {
    local top
    top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [ -z "${CARGO_TARGET_DIR:-}" ] && of_others "$top"; then
        export CARGO_TARGET_DIR=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/netns-exec
    fi
}

of_others() {
    [ ! -O "$1" ] || [ -n "$(
        find "$1/target" -maxdepth 0 ! -user "$(id -u)" 2>/dev/null
        find "$1/target/release" "$1/target/debug" -maxdepth 2 ! -user "$(id -u)" -print -quit 2>/dev/null
    )" ]
}

#!/bin/bash
# Builds the Debian package: scripts/build-deb.sh [DIRECTORY]. The package goes to DIRECTORY (target/debian); its name is
# the last line printed. POSTKEEP_BIN names an executable that is there already. Takes dpkg-deb; no root.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

out="${1:-target/debian}"
if [ -z "${POSTKEEP_BIN:-}" ]; then
    cargo build --release --locked -p postkeep
    POSTKEEP_BIN="${CARGO_TARGET_DIR:-target}/release/postkeep"
fi
version="$("$POSTKEEP_BIN" --version | cut -d' ' -f2)"
architecture="$(dpkg --print-architecture)"
mkdir -p "$out"
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

install -D -m 755 "$POSTKEEP_BIN" "$root/usr/bin/postkeep"
mkdir -p "$root/usr/libexec/postkeep"
for name in scache proxymap proxywrite socketmap postmap postalias postconf; do
    ln -s ../../bin/postkeep "$root/usr/libexec/postkeep/$name"
done
for page in man/*; do
    section="${page##*.}"
    mkdir -p "$root/usr/share/man/man$section"
    gzip -9n <"$page" >"$root/usr/share/man/man$section/$(basename "$page").gz"
done
doc="$root/usr/share/doc/postkeep"
install -D -m 644 -t "$doc" README.md docs/compatibility.md docs/tables.md docs/metrics.md docs/many-machines.md docs/moving.md docs/slow-tables.md
install -D -m 644 -t "$doc/examples" packaging/monitoring/*
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
{
    echo 'Under the MIT or the Apache 2.0 licence, as you like. The latter is in /usr/share/common-licenses/Apache-2.0.'
    echo
    cat LICENSE-MIT
} >"$doc/copyright"
completion() {
    mkdir -p "$root/$2"
    "$POSTKEEP_BIN" completions "$1" >"$root/$2/$3"
}
completion bash usr/share/bash-completion/completions postkeep
completion zsh usr/share/zsh/vendor-completions _postkeep
completion fish usr/share/fish/vendor_completions.d postkeep.fish
install -D -m 644 -t "$root/lib/systemd/system" packaging/systemd/*

# The packages of the libraries that it is linked to; the C library in the version that it was linked to, or later.
depends=''
while read -r library; do
    owner="$(dpkg -S "$(readlink -f "$library")" 2>/dev/null || dpkg -S "*${library##*/}" | head -1)"
    package="${owner%%:*}"
    if [ "$package" = libc6 ]; then
        installed="$(dpkg-query -W -f '${Version}' libc6)"
        package="libc6 (>= ${installed%%-*})"
    fi
    case ", $depends, " in *", $package, "*) ;; *) depends="${depends:+$depends, }$package" ;; esac
done < <(ldd "$POSTKEEP_BIN" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p')

mkdir "$root/DEBIAN"
size="$(du -sk --exclude=DEBIAN "$root" | cut -f1)"
cat >"$root/DEBIAN/control" <<END
Package: postkeep
Version: $version
Architecture: $architecture
Maintainer: The postkeep developers <postkeep@example.invalid>
Installed-Size: $size
Depends: $depends, passwd
Recommends: libdb5.3
Suggests: postfix
Section: mail
Priority: optional
Description: connection cache and lookup table server for Postfix
 The daemons scache and proxymap of Postfix, built anew. Installing this
 package changes nothing in Postfix: postkeep adopt has it use them, postkeep
 release gives it its own back. They also run without Postfix.
END
install -m 755 packaging/postinst packaging/prerm packaging/postrm "$root/DEBIAN"
(cd "$root" && find . -type f -not -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)
package="$out/postkeep_${version}_$architecture.deb"
dpkg-deb --root-owner-group --build "$root" "$package" >&2
echo "$package"

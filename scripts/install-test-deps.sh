#!/bin/bash
# Installs what the build and the tests need beside Rust: a C compiler (LMDB is built from source), and a real Postfix with
# the table types it is compared with, the servers that some of them ask, and valgrind, which counts instructions. Debian;
# as root.
set -euo pipefail

packages=(
    postfix postfix-lmdb postfix-cdb postfix-pcre postfix-sqlite gcc libc6-dev valgrind
    # Clients of servers, the servers themselves, and openssl for their certificates.
    postfix-mysql postfix-pgsql postfix-ldap sqlite3
    mariadb-server postgresql slapd ldap-utils memcached redis-server redis-sentinel openssl
    nodejs python3 python3-venv socat stunnel4 prometheus systemd jq
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    # The tests start instances of their own; nothing has to run on the system.
    apt-get update -q
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections || true
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.postkeep
    chmod +x /usr/sbin/policy-rc.d.postkeep
    had_policy=yes
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        had_policy=no
        mv /usr/sbin/policy-rc.d.postkeep /usr/sbin/policy-rc.d
    else
        rm /usr/sbin/policy-rc.d.postkeep
    fi
    status=0
    apt-get install -q -y --no-install-recommends "${missing[@]}" || status=$?
    [ "$had_policy" = yes ] || rm -f /usr/sbin/policy-rc.d
    [ "$status" -eq 0 ] || exit "$status"
fi

# A server that speaks MongoDB's protocol, as no package has MongoDB itself. Tests say SKIP without it.
mongodb=/opt/postkeep-test-secantusdb
if [ ! -x "$mongodb/bin/secantusd-py" ]; then
    { /usr/bin/python3 -m venv "$mongodb" &&
        "$mongodb/bin/pip" install -q --only-binary :all: secantusdb==0.7.0b3; } ||
        echo 'SKIP: secantusdb cannot be installed here: mongodb tables are not verified against any server'
fi

# Exim cannot be installed beside Postfix, so it is unpacked; it wants its user. Tests say SKIP without it.
exim=/opt/postkeep-test-exim
if [ ! -x "$exim/usr/sbin/exim4" ]; then
    unpack="$(mktemp -d)"
    { (cd "$unpack" && apt-get download -q exim4-daemon-light exim4-base libidn12) &&
        mkdir -p "$exim" &&
        for package in "$unpack"/*.deb; do dpkg -x "$package" "$exim"; done; } ||
        echo 'SKIP: exim cannot be unpacked here: nothing is asked by it'
    rm -rf "$unpack"
fi
getent passwd Debian-exim >/dev/null ||
    useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --user-group Debian-exim

# With "No configuration" the package leaves no main.cf, which a few commands want to read.
if [ ! -e /etc/postfix/main.cf ]; then
    printf 'compatibility_level = 3.7\nmydestination =\nalias_maps =\n' >/etc/postfix/main.cf
fi
if [ ! -e /etc/postfix/master.cf ] && [ -e /usr/share/postfix/master.cf.dist ]; then
    cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
fi
postconf -h mail_version

#!/bin/bash
# Installs the package beside Debian's Postfix, adopts it, delivers mail, releases, purges, and compares all files of
# Postfix with what they were: scripts/test-deb.sh PACKAGE. Works in a copy of this system (an overlay) that is thrown
# away, with processes and network of its own. As root, with Postfix installed.
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    package="$(readlink -f "${1:?usage: $0 PACKAGE}")"
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    status=0
    unshare --mount --net --pid --fork --kill-child bash "$(readlink -f "$0")" --inside "$scratch" "$package" || status=$?
    exit "$status"
fi

scratch="$2"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
cp "$3" "$scratch/upper/postkeep.deb"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root="$scratch/root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
# Nothing of this system's is to be seen in the copy: no systemd, no temporary files.
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
ip link set lo up

cat >"$scratch/upper/test" <<'END'
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
step() { printf '=== %s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    tail -30 /var/log/postfix-test.log >&2 || true
    exit 1
}
deliver() {
    printf 'Subject: %s\n\n%s\n' "$1" "$1" | sendmail -f sender@example.test alias@example.test
    for _ in $(seq 100); do
        grep -q "^Subject: $1\$" /var/mail/mailtest 2>/dev/null && return
        sleep 0.1
    done
    fail "mail $1 was not delivered"
}
servers() {
    # The executables behind the processes of the two daemons.
    for process in /proc/[0-9]*; do
        case "$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)" in
        *scache\ *|*proxymap\ *) readlink "$process/exe" ;;
        esac
    done | sort -u
}
picture() {
    find /etc/postfix /usr/lib/postfix -printf '%p %y %m %u %g %l\n' | sort
    find /etc/postfix /usr/lib/postfix -type f -print0 | sort -z | xargs -0 sha256sum
}

step 'a Postfix that delivers'
useradd mailtest
printf 'alias@example.test mailtest@example.test\n' >/etc/postfix/virtual
postconf -e myhostname=mail.example.test mydestination=example.test mynetworks=127.0.0.0/8 inet_interfaces=loopback-only \
    inet_protocols=ipv4 virtual_alias_maps=proxy:hash:/etc/postfix/virtual alias_maps= alias_database= relayhost= \
    mailbox_command= home_mailbox= smtp_dns_support_level=disabled maillog_file=/var/log/postfix-test.log
postconf -M 'postlog/unix-dgram=postlog unix-dgram n - n - 1 postlogd'
postmap /etc/postfix/virtual
# Changes the modes of some of the package's own files, the first time.
postfix set-permissions
postfix start
deliver before
picture >/picture.before

step 'install: nothing changes'
dpkg -i /postkeep.deb
picture | cmp /picture.before - || fail 'installing has changed a file of Postfix'
test -L /usr/libexec/postkeep/scache
man -w postkeep-adopt >/dev/null
deliver installed

step 'shadow, as its manual has it'
postconf -M 'candidate/unix=candidate unix - - n - 1 ../../../libexec/postkeep/proxymap -n proxymap'
postfix reload
cd /var/spool/postfix/private
postkeep shadow --listen shadow --reference proxymap \
    --candidate candidate >/shadow.log 2>&1 &
for _ in $(seq 100); do
    [ -S shadow ] && [ -S candidate ] && break
    sleep 0.1
done
postconf -e proxymap_service_name=shadow
postfix reload
deliver shadowed
postconf -X proxymap_service_name
postfix reload
kill %1
wait %1 || fail "shadow: $(cat /shadow.log)"
postconf -MX candidate/unix
cd /
cat /shadow.log

step adopt
postkeep adopt --dry-run
picture | cmp /picture.before - || fail 'a dry run, or the shadow, has changed a file of Postfix'
postkeep adopt --watch 3
postkeep doctor || fail "the doctor has found something"
deliver adopted
servers | grep -qx /usr/bin/postkeep || fail "our daemons do not run: $(servers)"
[ "$(servers)" = /usr/bin/postkeep ] || fail "others run, too: $(servers)"
postkeep status -d /var/spool/postfix
postkeep status
postkeep top --once --json | jq '.services[].lookups.tables[]?.table' | grep -F virtual || fail 'top does not show the table'
postkeep reload -d /var/spool/postfix proxymap
deliver reloaded

step 'Postfix set up again, as an upgrade of its package does'
dpkg-reconfigure -f noninteractive postfix >/reconfigure.log 2>&1 || fail "$(cat /reconfigure.log)"
postfix set-permissions upgrade-configuration
postfix status || postfix start
deliver upgraded
servers | grep -qx /usr/bin/postkeep || fail 'an upgrade has undone the adoption'

step release
postkeep release
postkeep release
deliver released
servers | grep -x /usr/bin/postkeep && fail 'our daemons still run'

step 'removal releases first'
postkeep adopt --watch 0
dpkg -r postkeep
deliver removed
dpkg -P postkeep
test ! -e /var/lib/postkeep || fail '/var/lib/postkeep is still there'

step 'compare'
picture >/picture.after
diff /picture.before /picture.after || fail 'something of Postfix is not what it was'
postfix stop
step done
END
chroot "$root" bash /test

#!/bin/sh
# trim-rootfs.sh DIRECTORY: makes an unpacked Debian tree into the root of an agent image: without what a
# program never needs, and with the few files that the packages' own scripts would have written.
set -eu
cd "$1"
# Meant for a fresh tree and deadly for a system: that one has a package database with entries, a fresh tree has not.
if [ "$PWD" = / ] || [ ! -e usr/bin/python3 ] || [ -s var/lib/dpkg/status ]; then
  echo "trim-rootfs.sh: $1 is not a freshly unpacked tree" >&2
  exit 1
fi

rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/i18n usr/share/lintian usr/share/bug \
  usr/share/perl5 usr/share/zoneinfo/right usr/lib/x86_64-linux-gnu/gconv usr/lib/aarch64-linux-gnu/gconv \
  var/cache/* var/lib/apt var/lib/dpkg var/log/* etc/apt etc/dpkg etc/cron.* etc/logrotate.d
# No package manager inside a sandbox.
rm -f usr/bin/dpkg* usr/sbin/dpkg* usr/bin/deb* usr/sbin/deb* usr/bin/apt* \
  etc/hostname etc/resolv.conf etc/fstab

cat >etc/passwd <<'X'
root:x:0:0:root:/root:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
X
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >etc/nsswitch.conf
ln -sf ../usr/share/zoneinfo/Etc/UTC etc/localtime
mkdir -p usr/local/bin usr/local/sbin etc/ssl/certs
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
ln -sf python3 usr/bin/python
ln -sf mawk usr/bin/awk
[ -e bin/sh ] || ln -s dash bin/sh

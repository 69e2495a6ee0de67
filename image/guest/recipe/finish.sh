#!/bin/sh
# Configures an unpacked Debian and makes a disk image of it.
#
#   finish.sh ROOT RECIPE AGENT IMAGE MIB <TAR
#
# It runs as root, or as the root of mmdebstrap's user namespace.
set -eu
root=$1 recipe=$2 agent=$3 image=$4 mib=$5

umask 022
mkdir "$root"

# Device nodes come from devtmpfs, and can't be made in a user namespace.
tar -C "$root" --exclude='./dev/*' --numeric-owner -xf -

cp -r "$recipe/overlay/." "$root/"
install -D -o 0 -g 0 -m 755 "$agent" "$root/usr/local/sbin/duet-agent"
cat "$recipe/redis.conf" >>"$root/etc/redis/redis.conf"

units=$root/etc/systemd/system
ln -s /lib/systemd/system/multi-user.target "$units/default.target"
wants=$units/multi-user.target.wants
for unit in systemd-networkd.service console-getty.service; do
	ln -s "/lib/systemd/system/$unit" "$wants/$unit"
done
ln -s ../duet-agent.service "$wants/duet-agent.service"

# What a server in a virtual machine has no use for, or what would only make
# its boot longer.
while read -r unit; do
	case $unit in "" | "#"*) continue ;; esac
	ln -sf /dev/null "$units/$unit"
done <"$recipe/masked"
mkdir -p "$root/etc/systemd/system-generators"
while read -r generator; do
	case $generator in "" | "#"*) continue ;; esac
	ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"
done <"$recipe/generators"

# The one NIC is eth0, and nobody has to rename it.
ln -s /dev/null "$root/etc/systemd/network/99-default.link"

# root's password is "duet", for the serial console.
sed -i 's|^root:[^:]*:|root:$6$duetguest$RCTObTL1F/EZ5/VICP5XYEL49vbg2BMjs5gns6LJbigzcmXrVz6QTfF8y3DrFsg6h6e.V7228uLG4FBK1Qztu/:|' "$root/etc/shadow"

rm -rf "$root"/var/cache/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/log/apt
: >"$root/etc/machine-id" # made at the first boot

PATH=$PATH:/sbin:/usr/sbin
mke2fs -q -F -t ext4 -L duet-guest -m 0 -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$image" "${mib}m"

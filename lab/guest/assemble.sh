#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Turns the root tree and the modules into a disk image. Runs as root, or as root of a user namespace: files of
# another owner exist in there only. Neither loop devices nor mounts: many machines give neither.
#   assemble.sh WORK ROOT_LABEL ROOT_START_SECTOR ROOT_MIB
set -eu
work=$1 label=$2 start=$3 mib=$4
tree=$work/tree
mkdir "$tree"
tar -x -p --numeric-owner --exclude='./dev/*' -C "$tree" -f "$work/root.tar"
rm "$work/root.tar"

version=$(ls "$tree/usr/lib/modules")
built=$(ls "$work/modules")
if [ "$version" != "$built" ]; then
    echo "the kernel is $version, but the modules were built for $built: the archive changed between two stages"
    exit 1
fi
cp -r "$work/modules/$version" "$tree/usr/lib/modules/$version/extra"
chown -R 0:0 "$tree/usr/lib/modules/$version/extra"
chroot "$tree" depmod "$version"

install -o 0 -g 0 -m 0600 "$work/id_ed25519.pub" "$tree/root/.ssh/authorized_keys"
cp "$tree/etc/ssh/ssh_host_ed25519_key.pub" "$work/host_key.pub"
cp "$tree/boot/vmlinuz-$version" "$work/vmlinuz"
cp "$tree/boot/initrd.img-$version" "$work/initrd"
chmod 0644 "$work/vmlinuz" "$work/initrd"

mke2fs -q -t ext4 -L "$label" -E "offset=$((start * 512)),nodiscard" -d "$tree" "$work/disk.raw" "${mib}M"
rm -rf "$tree"

#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs in the first boot, which QEMU started from a kernel file: from here on the disk starts by itself.
set -eu
version=$(uname -r)
grub-install --target=i386-pc /dev/vda
update-grub
grep -q "intel_iommu=off" /boot/grub/grub.cfg
for module in mtty mdpy netdevsim psample igb igbvf nvme vfio-pci kvm_amd; do
    modprobe --dry-run "$module"
done
test -e "/boot/initrd.img-$version"
# Both would otherwise be done by every host at its own first boot.
journalctl --update-catalog
systemd-hwdb update 2>/dev/null || true
journalctl --rotate --vacuum-size=1K --quiet || true
# This boot's own name, written from what QEMU said.
rm -f /etc/hostname
sync

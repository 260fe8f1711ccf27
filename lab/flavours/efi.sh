#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs in a host over the built image that has an empty EFI system partition for each flavour: gives each its loader. The
# root file system is the same for all; a host of a flavour gets one of the partitions (and, for uki, a file by
# lab/iovirt_lab/flavour.py). The GRUB for BIOS on the first disk stays: hosts of the field have such remains.
set -eu
version=$(uname -r)
export DEBIAN_FRONTEND=noninteractive

apt-get update -q -o Acquire::Languages=none
# mkfs.vfat first: the loader's package looks for a partition when it is installed.
apt-get install -q -y --no-install-recommends dosfstools grub-efi-amd64-bin
udevadm settle
mkdir -p /boot/efi /etc/kernel/install.d
for boot in grub-uefi systemd-boot uki; do
    mkfs.vfat -F 32 -s 2 -n LABESP "/dev/disk/by-id/virtio-esp-$boot-part1"
done

mount /dev/disk/by-id/virtio-esp-grub-uefi-part1 /boot/efi
grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram
umount /boot/efi

# depmod takes half a minute in emulation each time a kernel is installed, and changes nothing here.
ln -s /dev/null /etc/kernel/install.d/50-depmod.install
echo "root=LABEL=labroot ro console=ttyS0,115200 no_timer_check intel_iommu=off" >/etc/kernel/cmdline
mount /dev/disk/by-id/virtio-esp-systemd-boot-part1 /boot/efi
apt-get install -q -y --no-install-recommends systemd-boot systemd-boot-efi systemd-ukify
for boot in systemd-boot uki; do
    mountpoint -q /boot/efi || mount "/dev/disk/by-id/virtio-esp-$boot-part1" /boot/efi
    [ "$boot" = systemd-boot ] || printf 'layout=uki\nuki_generator=ukify\n' >/etc/kernel/install.conf
    bootctl install --no-variables
    echo "timeout 0" >/boot/efi/loader/loader.conf
    kernel-install add "$version" "/boot/vmlinuz-$version"
    bootctl list --no-pager || true
    find /boot/efi -type f
    umount /boot/efi
done
rm /etc/kernel/install.conf

# On a busy machine udev takes minutes to see a disk; and no fsck, which costs a process at each boot.
echo "LABEL=LABESP /boot/efi vfat umask=0077,x-systemd.device-timeout=30min 0 0" >>/etc/fstab
apt-get clean
rm -rf /var/lib/apt/lists/*
journalctl --rotate --vacuum-size=1K --quiet || true
rm -f /etc/hostname
sync

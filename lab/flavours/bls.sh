#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs in a host over the built image: gives it entries of the Boot Loader Specification, as Fedora and RHEL have them in
# /boot/loader/entries. GRUB is in the EFI system partition already (lab/iovirt_lab/flavour.py), and grubby in its place.
set -eu
version=$(uname -r)
machine=$(cat /etc/machine-id)
words="root=LABEL=labroot ro console=ttyS0,115200 no_timer_check intel_iommu=off"

mkdir -p /boot/loader/entries /boot/grub2 /etc/kernel /boot/efi /usr/libexec/grubby
# By its number of the newest first, as GRUB orders entries itself.
entry() {
    cat >"/boot/loader/entries/$1.conf" <<END
title $2
version $3
linux $4
initrd /boot/initrd.img-$version
options $words
grub_users \$grub_users
grub_arg --unrestricted
grub_class debian
END
}
entry "$machine-$version" "Debian GNU/Linux ($version) 13 (trixie)" "$version" "/boot/vmlinuz-$version"
cp "/boot/vmlinuz-$version" "/boot/vmlinuz-0-rescue-$machine"
entry "$machine-0-rescue" "Debian GNU/Linux (0-rescue-$machine) 13 (trixie)" "0-rescue-$machine" "/boot/vmlinuz-0-rescue-$machine"
echo "$words" >/etc/kernel/cmdline

cat >/boot/grub2/grub.cfg <<'END'
serial --unit=0 --speed=115200
terminal_output serial
load_env -f /boot/grub2/grubenv
set default="${saved_entry}"
set timeout=0
blscfg --path /boot/loader/entries
END
grub-editenv /boot/grub2/grubenv create
grub-editenv /boot/grub2/grubenv set kernelopts="$words"

# What grubby calls, by the names of its home; rpm-sort orders names of packages, of which sort knows enough for kernels.
ln -s "$(command -v grub-editenv)" /usr/bin/grub2-editenv
printf '#!/bin/sh\nexec sort -V\n' >/usr/libexec/grubby/rpm-sort
chmod 0755 /usr/libexec/grubby/rpm-sort
grubby --info=ALL

echo "LABEL=LABESP /boot/efi vfat umask=0077,x-systemd.device-timeout=30min 0 0" >>/etc/fstab
journalctl --rotate --vacuum-size=1K --quiet || true
rm -f /etc/hostname
sync

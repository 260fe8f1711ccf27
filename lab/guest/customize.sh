#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs inside the new root tree, before it becomes a disk: what makes it a host of the lab.
set -eu

# An address on the network of the lab, and on no other: the igb ports belong to the tests.
cat >/etc/systemd/network/10-lab.network <<'EOF'
[Match]
Driver=virtio_net
[Network]
DHCP=ipv4
LinkLocalAddressing=no
[DHCPv4]
UseDNS=no
UseHostname=no
EOF
systemctl enable --quiet systemd-networkd.service
# The name server of QEMU's user network; without resolved nobody else writes this file.
rm -f /etc/resolv.conf
echo "nameserver 10.0.2.3" >/etc/resolv.conf

# Waiting for ssh means many broken connections from one address: sshd would ban the caller.
cat >/etc/ssh/sshd_config.d/lab.conf <<'EOF'
PerSourcePenalties no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
EOF
mkdir -p /root/.ssh
chmod 0700 /root/.ssh

# The name comes from QEMU, as a credential that systemd reads: each host over this image has its own.
rm -f /etc/hostname
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >/etc/hosts
echo "LANG=C.UTF-8" >/etc/default/locale
echo "LABEL=labroot / ext4 errors=remount-ro 0 1" >/etc/fstab

# As the postinst of grub-pc does it; the lab starts with the IOMMU off, so that switching it on is real work.
# no_timer_check: on a busy machine the emulated timer ticks too late for that check, and the kernel panics with
# "timer doesn't work through Interrupt-remapped IO-APIC" (seen; the kernel leaves the check out under real KVM).
# No console=tty0: drawing each line of the kernel on an emulated screen costs a tenth of the boot.
sed -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' \
    -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT="intel_iommu=off"/' \
    -e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="console=ttyS0,115200 no_timer_check"/' \
    /usr/share/grub/default/grub >/etc/default/grub
printf '\nGRUB_TERMINAL="serial console"\nGRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\n' >>/etc/default/grub

# Slow in emulation and of no use here. Nothing that a reboot, udev, the network, logins or package upgrades need.
systemctl mask --quiet \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    getty@tty1.service grub-common.service nvmf-autoconnect.service systemd-binfmt.service systemd-networkd-wait-online.service \
    systemd-pstore.service modprobe@drm.service modprobe@efi_pstore.service

# There for the tests that look at them, and started by these alone: the keepers of networks and guests that a host of
# the field may have. Started at each boot they would cost more than all the rest of it.
touch /etc/cloud/cloud-init.disabled
systemctl disable --quiet NetworkManager.service NetworkManager-dispatcher.service NetworkManager-wait-online.service \
    openvswitch-switch.service libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket \
    virtlogd.service virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket libvirt-guests.service

#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
# Says what the host is, a fact a line, from /proc, sysfs and lspci.
set -u
tr ' ' '\n' </proc/cmdline | sed 's/^/cmdline /'
if [ -n "$(ls /sys/kernel/iommu_groups)" ]; then echo "groups yes"; else echo "groups no"; fi

driver() {
    lspci -Dks "$1" | sed -n 's/.*driver in use: //p' | grep . || echo none
}

for name in igb nvme; do
    for pf in /sys/bus/pci/drivers/"$name"/0*; do
        [ -e "$pf/sriov_totalvfs" ] || continue
        count=0
        for link in "$pf"/virtfn*; do
            [ -e "$link" ] || continue
            count=$((count + 1))
            echo "vf $name ${pf##*/} ${link##*virtfn} $(driver "$(basename "$(readlink "$link")")")"
        done
        echo "pf $name ${pf##*/} $count"
    done
done
edu=$(lspci -Dd 1234:11e8 | cut -d' ' -f1)
echo "edu $edu $(driver "$edu")"
echo "failed units: $(systemctl list-units --state=failed --no-legend | wc -l)"

#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs inside a build tree: Debian ships neither the mdev samples nor netdevsim, but it ships their source.
set -eu
version=$(ls /lib/modules)
mkdir -p /build /out
cd /build
tar -xf /usr/src/linux-source-*.tar.xz --strip-components=1 --wildcards '*/samples/vfio-mdev/*' '*/drivers/net/netdevsim/*'
kbuild() {
    make -s -j"$(nproc)" -C "/lib/modules/$version/build" "$@" modules
}
kbuild M=/build/samples/vfio-mdev CONFIG_SAMPLE_VFIO_MDEV_MTTY=m CONFIG_SAMPLE_VFIO_MDEV_MDPY=m
kbuild M=/build/drivers/net/netdevsim CONFIG_NETDEVSIM=m
mkdir -p "/out/$version"
cp samples/vfio-mdev/mtty.ko samples/vfio-mdev/mdpy.ko drivers/net/netdevsim/netdevsim.ko "/out/$version/"

#!/bin/sh
# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs inside a build tree: Debian ships neither the mdev samples nor netdevsim, but it ships their source. vmdqsim.c is in /tmp.
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
# It is not for the image, where it would take QEMU's edu device at each boot. It is written for the lab's own kernel: one that it
# does not compile for has a host all the same, and vmdqsim/make says then what is wrong with it.
mkdir vmdqsim
cp /tmp/vmdqsim.c vmdqsim/
echo 'obj-m := vmdqsim.o' >vmdqsim/Makefile
if kbuild M=/build/vmdqsim; then
    cp vmdqsim/vmdqsim.ko "/out/vmdqsim-$version-$(sha256sum /tmp/vmdqsim.c | cut -c1-12).ko"
fi

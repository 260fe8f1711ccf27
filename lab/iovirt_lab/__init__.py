# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual lab: Debian hosts with an IOMMU and SR-IOV devices, run by QEMU."""

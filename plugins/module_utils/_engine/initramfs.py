# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Early binding: a script in the initramfs that gives a device its driver_override before udev loads anything.

Why not the option ids= of vfio-pci: it takes every device of these ids, the one that is left to the host as well, works
by another way where vfio-pci is built in, and counts on the order in which modules are loaded. An override at an
address, written only where the ids fit, is exact; it works for a built-in and for a loadable vfio-pci alike.

Which script, where: initramfs-tools(7) (boot scripts in init-top, hook scripts), dracut.modules(7) (hook pre-udev),
mkinitcpio(8) (install and runtime hooks; drop-ins from version 38 on).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable

from . import drivers
from .errors import EngineError, explain
from .host import Files, Host
from .model import HOST, Action
from .plain import dataclass

#: That an initramfs holds our script, or may: written before the first one is made, removed after the last is clean.
RECORD = "/var/lib/iovirt/early"
#: On the kernel command line it lets one boot go without early binding.
OFF = "iovirt.early=off"

#: What a tool makes beside the image whose place it shall take.
_NEW = ".iovirt-new"
_NOTE = "# Written by iovirt.host; removed with the last device that is bound early."

# The script is sourced by dracut and executed by initramfs-tools, so it does not exit by itself; shell builtins alone, as
# an initramfs may have neither cat nor grep. What already has a driver is left alone: to take a device from somebody is
# not the business of an initramfs.
_CLAIM = f"""iovirt_read() {{
  iovirt_value=
  [ ! -r "$1" ] || read -r iovirt_value < "$1" || :
}}
iovirt_is() {{
  iovirt_read "$iovirt_device/$1"
  [ "$iovirt_value" = "$2" ]
}}
iovirt_claim() {{
  iovirt_device="${{IOVIRT_ROOT:-}}/sys/bus/pci/devices/$1"
  [ -e "$iovirt_device" ] && [ ! -e "$iovirt_device/driver" ] || return 0
  iovirt_is vendor "$2" && iovirt_is device "$3" || return 0
  iovirt_is subsystem_vendor "$4" && iovirt_is subsystem_device "$5" || return 0
  echo "$6" > "$iovirt_device/driver_override" || return 0
  [ -e "${{IOVIRT_ROOT:-}}/sys/bus/pci/drivers/$6" ] || modprobe "$7" || return 0
  [ -e "$iovirt_device/driver" ] || echo "$1" > "${{IOVIRT_ROOT:-}}/sys/bus/pci/drivers_probe" || return 0
}}
iovirt_read "${{IOVIRT_ROOT:-}}/proc/cmdline"
case " $iovirt_value " in
*" {OFF} "*) ;;
*)
%(claims)s
  ;;
esac
"""


@dataclass(frozen=True)
class Claim:
    """A device that the initramfs gives to a driver."""

    address: str
    vendor: str
    device: str
    subsystem: str
    driver: str

    @property
    def line(self) -> str:
        sub = " ".join(f"0x{part}" for part in self.subsystem.split(":"))
        module = drivers.module_of(self.driver)
        return f"  iovirt_claim {self.address} 0x{self.vendor} 0x{self.device} {sub} {self.driver} {module}"


def claim(address: str, entry: Mapping[str, Any]) -> Claim:
    """From an entry of declared state."""
    ids, _blank, subsystem = str(entry["identity"]["ids"]).partition(" ")
    vendor, _colon, device = ids.partition(":")
    return Claim(address, vendor, device, subsystem, entry["wish"]["driver"])


@dataclass(frozen=True)
class Tool:
    """A tool that makes initramfs images. In argv, IMAGE and RELEASE stand for themselves."""

    name: str
    #: It is there when all of these are.
    signs: tuple[str, ...]
    #: Name of an image in /boot, with the release in it.
    image: re.Pattern[str]
    refresh: tuple[str, ...]
    lister: tuple[str, ...]
    #: What the listing of an image with our script in it holds.
    inside: str
    #: Script and modules -> path, text and mode of our files.
    files: Callable[[str, Sequence[str]], dict[str, tuple[str, int]]]
    #: What the names of images call the kernels that are here.
    kernels: Callable[[Files], Collection[str]] = lambda files: files.names("/lib/modules")
    #: It writes where it is told to, into the file that is there: so it is told a name beside it, and what it made is looked at before it
    #: takes the place. The others name the file themselves: update-initramfs renames it by itself, mkinitcpio's presets say more than one.
    beside: bool = False


_TOOLS_SCRIPT = "/etc/initramfs-tools/scripts/init-top/00-iovirt-vfio"
_TOOLS_HOOK = "/etc/initramfs-tools/hooks/iovirt-vfio"


def _initramfs_tools(claims: str, modules: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Scripts without prerequisites run in the order of their names, so ours comes before udev (seen in the lab)."""
    head = f'#!/bin/sh\n{_NOTE}\ncase "$1" in prereqs) exit 0 ;; esac\n'
    # manual_add_modules passes over what a kernel has built in or has not at all.
    hook = f"{head}. /usr/share/initramfs-tools/hook-functions\nmanual_add_modules {' '.join(modules)}\n"
    return {_TOOLS_SCRIPT: (head + claims + "exit 0\n", 0o755), _TOOLS_HOOK: (hook, 0o755)}


_DRACUT_FOLDER = "/usr/lib/dracut/modules.d/00iovirt-vfio"


def _dracut(claims: str, modules: Sequence[str]) -> dict[str, tuple[str, int]]:
    """A module of dracut's: it looks for modules in this one folder only."""
    setup = (
        f"#!/bin/bash\n{_NOTE}\n"
        "check() { return 0; }\n"
        "depends() { return 0; }\n"
        # hostonly leaves out the drivers of devices that have another one now.
        f"installkernel() {{ hostonly='' instmods {' '.join(modules)}; return 0; }}\n"
        'install() { inst_hook pre-udev 00 "$moddir/iovirt-vfio.sh"; }\n'
    )
    return {
        f"{_DRACUT_FOLDER}/iovirt-vfio.sh": (f"#!/bin/sh\n{_NOTE}\n{claims}", 0o755),
        f"{_DRACUT_FOLDER}/module-setup.sh": (setup, 0o755),
    }


_INITCPIO = "/etc/initcpio"
_CLAIMS = "iovirt-vfio"
#: Images without a systemd of their own run hooks, those with one run units; bash, as such an image may have no shell.
_INITCPIO_BUILD = f"""build() {{
  local module
  for module in %s; do add_module "$module?"; done
  add_binary modprobe
  add_file {_INITCPIO}/{_CLAIMS}.sh /usr/bin/{_CLAIMS} 755
  if [[ " ${{HOOKS[*]}} " == *" systemd "* ]]; then
    add_binary bash
    add_file {_INITCPIO}/{_CLAIMS}.service /usr/lib/systemd/system/{_CLAIMS}.service 644
    add_symlink /usr/lib/systemd/system/sysinit.target.wants/{_CLAIMS}.service ../{_CLAIMS}.service
  else
    add_runscript
  fi
}}
help() {{ echo "Gives devices to VFIO drivers before udev loads anything."; }}
"""
_INITCPIO_UNIT = f"""[Unit]
DefaultDependencies=no
Before=systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service

[Service]
Type=oneshot
ExecStart=/usr/bin/bash /usr/bin/{_CLAIMS}
"""


def _mkinitcpio(claims: str, modules: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Our hook comes first, so its early part runs before udev's (init of mkinitcpio: EARLYHOOKS, MODULES, HOOKS)."""
    return {
        f"{_INITCPIO}/{_CLAIMS}.sh": (f"#!/bin/sh\n{_NOTE}\n{claims}", 0o755),
        f"{_INITCPIO}/{_CLAIMS}.service": (f"{_NOTE}\n{_INITCPIO_UNIT}", 0o644),
        f"{_INITCPIO}/install/{_CLAIMS}": (f"#!/bin/bash\n{_NOTE}\n{_INITCPIO_BUILD % ' '.join(modules)}", 0o644),
        f"{_INITCPIO}/hooks/{_CLAIMS}": (f"#!/usr/bin/ash\n{_NOTE}\nrun_earlyhook() {{ ash /usr/bin/{_CLAIMS}; }}\n", 0o644),
        "/etc/mkinitcpio.conf.d/zz-iovirt.conf": (f'{_NOTE}\nHOOKS=({_CLAIMS} "${{HOOKS[@]}}")\n', 0o644),
    }


def _packages(files: Files) -> Collection[str]:
    """Arch's images have the name of the kernel's package: linux, linux-lts."""
    found = (files.attr(f"/lib/modules/{name}/pkgbase") for name in files.names("/lib/modules"))
    return {name for name in found if name}


TOOLS = (
    Tool(
        name="initramfs-tools",
        signs=("/usr/sbin/update-initramfs", "/usr/share/initramfs-tools/hook-functions"),
        image=re.compile(r"initrd\.img-(.+)"),
        refresh=("update-initramfs", "-u", "-k", "RELEASE"),
        lister=("lsinitramfs", "IMAGE"),
        inside="scripts/init-top/00-iovirt-vfio",
        files=_initramfs_tools,
    ),
    Tool(
        name="dracut",
        signs=("/usr/bin/dracut", "/usr/lib/dracut/modules.d"),
        image=re.compile(r"(?:initramfs-(.+)\.img|initrd\.img-(.+))"),
        refresh=("dracut", "--force", "IMAGE", "RELEASE"),
        lister=("lsinitrd", "IMAGE"),
        inside="iovirt-vfio.sh",
        files=_dracut,
        beside=True,
    ),
    Tool(
        name="mkinitcpio",
        signs=("/usr/bin/mkinitcpio", "/etc/mkinitcpio.conf"),
        # By its preset, which makes the fallback image as well: that one by itself would be made as the other.
        image=re.compile(r"initramfs-(.+)(?<!-fallback)\.img"),
        refresh=("mkinitcpio", "-p", "RELEASE"),
        lister=("lsinitcpio", "IMAGE"),
        inside=f"usr/bin/{_CLAIMS}",
        files=_mkinitcpio,
        kernels=_packages,
    ),
)


def tool(files: Files) -> Tool | None:
    """The tool of this host; of several the one whose images are there."""
    here = [t for t in TOOLS if all(files.exists(sign) for sign in t.signs)]
    return next((t for t in here if images(files, t)), here[0] if here else None)


def images(files: Files, of: Tool) -> dict[str, str]:
    """Image -> what the tool calls its kernel, for the kernels whose modules are there."""
    found = {}
    releases = set(of.kernels(files))
    for name in files.names("/boot"):
        match = of.image.fullmatch(name)
        release = next((part for part in match.groups() if part), "") if match else ""
        if release in releases:
            found[f"/boot/{name}"] = release
    return found


def read(files: Files) -> dict[str, Any]:
    """The tool, our files as they are, and the images with the time of their last change. An image older than our
    files does not hold them: kernels that are installed later take them by themselves."""
    here = tool(files)
    if here is None:
        return {"tool": None, "record": files.text(RECORD), "files": {}, "images": {}, "stale": []}
    texts = {path: files.text(path) for path in here.files("", ())}
    found = images(files, here)
    ours = [time for path in texts if (time := files.changed(path)) is not None]
    stale = [path for path in found if ours and (files.changed(path) or 0.0) < max(ours)]
    return {"tool": here.name, "record": files.text(RECORD), "files": texts, "images": found, "stale": stale}


def wanted(of: str, claims: Sequence[Claim]) -> dict[str, tuple[str, int]]:
    """Path -> text and mode of our files; none when no device is claimed."""
    if not claims:
        return {}
    here = next(t for t in TOOLS if t.name == of)
    ordered = sorted(claims, key=lambda c: c.address)
    script = _CLAIM % {"claims": "\n".join(c.line for c in ordered)}
    return here.files(script, sorted({drivers.module_of(c.driver) for c in ordered}))


def digest(files: Mapping[str, tuple[str, int]]) -> str:
    return hashlib.sha256("\0".join(f"{path}\0{text}" for path, (text, _m) in sorted(files.items())).encode()).hexdigest()


def ready(now: Mapping[str, Any]) -> bool:
    """Does every image hold our files as they are?"""
    return bool(now["images"] and now["record"] and not now["stale"])


def plan(now: Mapping[str, Any], claims: Sequence[Claim]) -> list[Action]:
    """Write or remove our files and make the images anew, once for all devices."""
    if now["tool"] is None:
        return []
    files = wanted(now["tool"], claims)
    same = all(now["files"].get(path) == (files[path][0] if path in files else None) for path in {*now["files"], *files})
    if same and (ready(now) and now["record"] == digest(files) + "\n" if files else not now["record"]):
        return []
    who = ", ".join(sorted(c.address for c in claims))
    count = len(now["images"])
    text = f"make {count} initramfs image{'s' if count != 1 else ''} anew with {now['tool']}"
    before = sorted(path for path, old in now["files"].items() if old)
    return [
        Action(
            kind="refresh_initramfs",
            unit=HOST,
            text=f"{text}: {f'they claim {who} before udev' if who else 'they claim nothing any more'}",
            args={
                "tool": now["tool"],
                "images": dict(now["images"]),
                "files": {path: list(item) for path, item in files.items()},
                "previous": dict(now["files"]),
                "digest": digest(files) if files else None,
            },
            before={"initramfs claims": _claimed(now["files"]) or None, "initramfs files": before or None},
            after={"initramfs claims": sorted(c.address for c in claims) or None, "initramfs files": sorted(files) or None},
        )
    ]


def _claimed(files: Mapping[str, str | None]) -> list[str]:
    return sorted({a for text in files.values() for a in re.findall(r"^  iovirt_claim (\S+)", text or "", re.MULTILINE)})


def refresh(host: Host, args: Mapping[str, Any]) -> None:
    here = next(t for t in TOOLS if t.name == args["tool"])
    # From here on an image may hold our script, whatever happens.
    host.files.replace(RECORD, f"{args['digest'] or 'being removed'}\n")
    for path in args["previous"]:
        if path not in args["files"]:
            host.files.remove(path)
    for path, (text, mode) in args["files"].items():
        try:
            host.files.replace(path, text, mode)
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {explain(error)}. Leave `early` out there.") from None
    for image, release in args["images"].items():
        _refresh(host, here, image, release, inside=bool(args["files"]))
    if not args["files"]:
        _remove_folder(host.files)
        host.files.remove(RECORD)


def remake(host: Host, of: str, found: Mapping[str, str]) -> None:
    """Make images anew, as something that they have a copy of has changed."""
    here = next(t for t in TOOLS if t.name == of)
    for image, release in found.items():
        _refresh(host, here, image, release)


def _refresh(host: Host, here: Tool, image: str, release: str, inside: bool | None = None) -> None:
    """Make an image anew; where `inside` says so, it must hold our script afterwards, or must not."""
    if here.beside:
        _refresh_beside(host, here, image, release, inside)
        return
    with host.files.kept_for_loader(image):
        _run_tool(host, here, image, release, "")
    if inside is not None:
        _look_at(host, here, image, release, inside, "")


def _refresh_beside(host: Host, here: Tool, image: str, release: str, inside: bool | None) -> None:
    for name in host.files.names("/boot"):
        # A run that was cut off has left it, maybe of a kernel that is gone by now.
        if name.endswith(_NEW) and here.image.fullmatch(name[: -len(_NEW)]):
            # Where it cannot go, the tool says why in its own words.
            with contextlib.suppress(OSError):
                host.files.remove(f"/boot/{name}")
    # An image may be a link to where the boot loader reads it.
    place = host.files.resolve(image)
    made = f"{place}{_NEW}"
    as_it_was = f"{image} is as it was. "
    try:
        _run_tool(host, here, made, release, as_it_was)
        _look_at(host, here, made, release, inside, as_it_was)
        host.files.put_in_place(made, place)
    except OSError as error:
        raise EngineError(f"{made} cannot take the place of {place}: {explain(error)}. {as_it_was}The next run tries again.") from None
    finally:
        # What went wrong before says more than that it cannot be taken away.
        with contextlib.suppress(OSError):
            host.files.remove(made)


def _run_tool(host: Host, here: Tool, image: str, release: str, as_it_was: str) -> None:
    argv = _filled(here.refresh, image, release)
    code, _out, err = host.run(argv)
    if code:
        said = (err.strip().splitlines() or [f"exit status {code}"])[-1]
        raise EngineError(f"{' '.join(argv)} failed: {said}. {as_it_was}Is there room in /boot? The next run tries again.")


def _look_at(host: Host, here: Tool, image: str, release: str, inside: bool | None, as_it_was: str) -> None:
    """An image that cannot be listed is none, whatever shall be in it."""
    argv = _filled(here.lister, image, release)
    code, out, err = host.run(argv)
    if code or not out.strip() or (inside is not None and (here.inside in out) != inside):
        what = err.strip() or ("nothing is in it" if not out.strip() else f"{here.inside} is {'not ' if inside else 'still '}in it")
        raise EngineError(f"{image} did not come out as wished ({' '.join(argv)}: {what}). {as_it_was}".rstrip())


def _filled(words: Sequence[str], image: str, release: str) -> list[str]:
    return [{"IMAGE": image, "RELEASE": release}.get(word, word) for word in words]


def _remove_folder(files: Files) -> None:
    if files.exists(_DRACUT_FOLDER) and not files.names(_DRACUT_FOLDER):
        files.remove(_DRACUT_FOLDER)


def undo(host: Host, args: Mapping[str, Any]) -> None:
    """The files as they were. The images are not made again: what has just failed would fail again, and the record says
    to the next run that they may hold anything."""
    for path in args["files"]:
        if args["previous"].get(path) is None:
            host.files.remove(path)
    for path, text in args["previous"].items():
        if text is not None:
            host.files.replace(path, text, args["files"].get(path, (text, 0o755))[1])
    host.files.replace(RECORD, "unknown\n")

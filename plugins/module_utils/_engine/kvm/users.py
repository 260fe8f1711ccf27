# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may use the system's libvirt: the members of its group, by polkit's rule for that group (https://libvirt.org/aclpolkit.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import EngineError
from ..host import Host
from ..model import CERTAIN, Action, Plan, Refusal
from ..plain import dataclass

GROUP = "libvirt"
UNIT = "libvirt users"
#: libvirt's actions for polkit; where they are not, the sockets' own permissions count.
ACTIONS = "/usr/share/polkit-1/actions/org.libvirt.unix.policy"
RULES = ("/etc/polkit-1/rules.d", "/run/polkit-1/rules.d", "/usr/local/share/polkit-1/rules.d", "/usr/share/polkit-1/rules.d")
PATH = "/etc/polkit-1/rules.d/60-iovirt-libvirt.rules"
_RULE = f"""// Written by iovirt.host: no rule of libvirt's own was found.
polkit.addRule(function(action, subject) {{
    if (action.id == "org.libvirt.unix.manage" && subject.isInGroup("{GROUP}")) {{
        return polkit.Result.YES;
    }}
}});
"""


@dataclass(frozen=True)
class Facts:
    #: None: there is no such group.
    members: tuple[str, ...] | None
    #: Of those that were asked for.
    unknown: tuple[str, ...] = ()
    polkit: bool = False
    #: Somebody else's rule for libvirt.
    rule: str | None = None
    text: str | None = None


def read(host: Host, users: Sequence[str]) -> Facts:
    files = host.files
    local = {line.partition(":")[0] for line in (files.text("/etc/passwd") or "").splitlines()}
    # Users may come from a directory: then the name service knows them.
    unknown = [user for user in users if user not in local and host.run(["getent", "passwd", "--", user])[0]]
    rules = [f"{folder}/{name}" for folder in RULES for name in files.names(folder) if "libvirt" in name]
    return Facts(
        members=members(host, GROUP),
        unknown=tuple(unknown),
        polkit=files.exists(ACTIONS),
        rule=next((path for path in rules if path != PATH), None),
        text=files.text(PATH),
    )


def members(host: Host, group: str) -> tuple[str, ...] | None:
    for line in (host.files.text("/etc/group") or "").splitlines():
        fields = line.split(":")
        if fields[0] == group and len(fields) > 3:
            return tuple(name for name in fields[3].split(",") if name)
    return None


def plan(facts: Facts, users: Sequence[str], coming: bool) -> Plan:
    """`coming`: the packages that bring the group are yet to be installed."""
    if facts.unknown:
        names = ", ".join(facts.unknown)
        return Plan(refusals=[Refusal(UNIT, f"there is no user {names}.", "Create the user first; nothing was changed.")])
    if facts.members is None and users and not coming:
        return Plan(refusals=[Refusal(UNIT, f"there is no group {GROUP}.", "Install libvirt's daemon first; nothing was changed.")])
    result = Plan(actions=_file(facts, _RULE) if facts.polkit and not facts.rule and users else [])
    result.actions += [_set(user, True) for user in users if user not in (facts.members or ())]
    return result


def _file(facts: Facts, text: str | None) -> list[Action]:
    if facts.text == text:
        return []
    what = f"write {PATH}, which lets the group {GROUP} in" if text else f"remove {PATH}"
    args = {"path": PATH, "text": text, "previous": facts.text}
    return [Action("write_file", UNIT, what, args=args, before={PATH: facts.text}, after={PATH: text})]


def _set(user: str, member: bool) -> Action:
    return Action(
        kind="set_member",
        unit=UNIT,
        text=f"{'put' if member else 'take'} {user} {'into' if member else 'out of'} the group {GROUP}",
        certainty=CERTAIN,
        args={"user": user, "member": member},
        before={user: not member},
        after={user: member},
    )


def origin(facts: Facts, users: Sequence[str]) -> dict[str, bool]:
    return {user: user in (facts.members or ()) for user in users}


def restore(facts: Facts, before: Mapping[str, bool]) -> Plan:
    members = facts.members or ()
    gone = [user for user, member in before.items() if not member and user in members]
    return Plan(actions=[_set(user, False) for user in gone] + _file(facts, None))


def info(facts: Facts) -> list[str]:
    return list(facts.members or ())


def set_member(host: Host, args: Mapping[str, Any]) -> None:
    _put(host, args["user"], args["member"])


def undo_member(host: Host, args: Mapping[str, Any]) -> None:
    _put(host, args["user"], not args["member"])


def _put(host: Host, user: str, member: bool) -> None:
    if (user in (members(host, GROUP) or ())) == member:
        return
    code, _out, err = host.run(["gpasswd", "-a" if member else "-d", user, GROUP])
    if code or (user in (members(host, GROUP) or ())) != member:
        raise EngineError(f"gpasswd did not change the group {GROUP}: {err.strip() or code}. Does it come from a directory service?")

# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot replay: what is installed, that it starts, and that it goes with the last device. And what replay does when
something is refused."""

from __future__ import annotations

import ast
import errno
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils import _engine
from ansible_collections.iovirt.host.plugins.module_utils._engine import (
    boot,
    cli,
    loaders,
    mdev,
    replay,
    resources,
    sriov,
    vgpu,
)
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem, Host
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    NSIM,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    lab,
    quiet,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net


def sources():
    found = {}
    for package, prefix in ((_engine, ""), (resources, "resources/"), (loaders, "loaders/"), (sriov, "sriov/"), (mdev, "mdev/"), (vgpu, "vgpu/")):
        found[f"{prefix}__init__.py"] = ""
        for info in pkgutil.iter_modules(package.__path__):
            if not info.ispkg:
                path = Path(next(iter(package.__path__))) / f"{info.name}.py"
                found[f"{prefix}{info.name}.py"] = path.read_text(encoding="utf-8")
    return found


def ours(sim):
    return {path for path in [*sim.files, *sim.links] if "iovirt" in path and not path.startswith(("/run/", "/etc/iovirt/"))}


def test_installed_with_the_first_device_and_removed_with_the_last():
    sim = lab()
    converged(sim, vfio=[at(EDU)])
    assert sim.link(boot.CURRENT) == boot.version({"__init__.py": "", "cli.py": "# engine\n"})
    assert sim.exists(f"{boot.CURRENT}/__main__.py")
    assert sim.exists(boot.WANTED)
    assert sim.mode(boot.COMMAND) == 0o755
    assert ["systemctl", "daemon-reload"] in sim.commands
    assert f'KERNEL=="{EDU}"' in sim.text(boot.RULES)
    converged(sim, vfio=[at(NVME)])
    assert f'KERNEL=="{NVME}"' in sim.text(boot.RULES)
    converged(sim, vfio=[at(EDU, state="absent")])
    assert f'KERNEL=="{EDU}"' not in sim.text(boot.RULES)
    assert ours(sim)
    converged(sim, vfio=[at(NVME, state="absent")])
    assert ours(sim) == set()
    quiet(sim, vfio=[at(NVME, state="absent")])


def test_a_new_engine_takes_the_place_of_the_old():
    sim = lab()
    call(sim, vfio=[at(EDU)])
    old = sim.link(boot.CURRENT)
    sim.replace(f"{boot.HOME}/engine/{old}/iovirt_engine/__pycache__/cli.pyc", "")
    done = call(sim, vfio=[at(EDU)], sources=lambda: {"cli.py": "# newer\n"})
    assert [action["action"] for action in done["actions"]] == ["install_replay"]
    assert sim.link(boot.CURRENT) != old
    assert sim.names(f"{boot.HOME}/engine") == sorted([sim.link(boot.CURRENT), "current"])


@pytest.mark.parametrize("path", [boot.RULES, f"{boot.UNITS}/{boot.UNIT}", boot.WANTED, boot.CURRENT])
def test_what_somebody_removed_comes_back(path):
    sim = lab()
    call(sim, vfio=[at(EDU)])
    sim.remove(path)
    assert call(sim, vfio=[at(EDU)], check=True)["changed"]
    converged(sim, vfio=[at(EDU)])
    assert sim.exists(path)


def test_a_read_only_usr_does_not_keep_the_replay_off():
    sim = lab()
    sim.faults.append((boot.COMMAND, "*", errno.EROFS))
    converged(sim, vfio=[at(EDU)])
    assert sim.exists(boot.WANTED)
    assert not sim.exists(boot.COMMAND)
    sim.reboot()
    assert replay.run(sim.host(sources=None), None)["failures"] == {}


def test_what_somebody_edited_is_put_right():
    sim = lab()
    call(sim, vfio=[at(EDU)])
    sim.replace(boot.COMMAND, "#!/bin/sh\n", 0o755)
    converged(sim, vfio=[at(EDU)])
    assert "replay" in sim.text(f"{boot.UNITS}/{boot.UNIT}")
    assert "exec" in sim.text(boot.COMMAND)


def test_a_host_without_systemd_gets_no_daemon_reload():
    sim = lab()
    sim.files.pop("/run/systemd/system/.keep")
    sim._tree = None
    call(sim, vfio=[at(EDU)])
    assert not [argv for argv in sim.commands if argv[0] in ("systemctl", "udevadm")]


def test_what_is_installed_starts(tmp_path):
    """The real sources, as the door packs them, with the flags of the unit; a wrong call says how it is used."""
    host = Host(files=FileSystem(str(tmp_path)), run=lambda argv: (0, "", ""), sources=sources, python=sys.executable)
    version = boot.version(sources())
    boot.install(host, {"version": version, "declared": [PF1], "ours": [PF1], "stations": [], "previous": {"version": None, "files": {}}})
    folder = str(tmp_path) + boot.CURRENT
    assert os.path.realpath(folder).endswith(version)
    done = subprocess.run([sys.executable, "-I", folder, "nonsense"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == cli.USAGE
    text = (tmp_path / boot.COMMAND[1:]).read_text()
    assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0
    assert f"{sys.executable} -I {boot.CURRENT}" in text
    assert boot.read(host.files, host.python)["version"] == version
    boot.remove(host, {})
    left = [name for _folder, _names, files in os.walk(tmp_path) for name in files]
    assert left == []
    assert not (tmp_path / boot.HOME[1:]).exists()


def test_the_engine_needs_the_standard_library_alone():
    """It is copied to the host, and ansible-test forbids subprocess there."""
    allowed = set(getattr(sys, "stdlib_module_names", ())) or None
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in names:
                top = module.partition(".")[0]
                assert top not in ("ansible", "ansible_collections", "subprocess"), name
                assert allowed is None or top in allowed, (name, top)


def test_the_engine_runs_on_the_oldest_python_of_a_target():
    for name, text in sources().items():
        ast.parse(text, filename=name, feature_version=(3, 9))
        if text.strip():
            assert "from __future__ import annotations" in text, name


# --- What the operator's command does ----------------------------------------------------------------------------------


@pytest.fixture
def operator(monkeypatch, capsys):
    def run(sim, *arguments):
        monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
        monkeypatch.setattr(cli, "Host", lambda **_more: sim.host(environment={}, sources=None))
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_operators_command(operator):
    sim = lab()
    call(sim, vfio=[at(EDU)], sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    assert operator(sim, "plan") == (0, "nothing to do\n", "")
    sim.reboot()
    code, out, _err = operator(sim, "plan")
    assert code == 2
    assert f"{PF1}: set the number of VFs from 0 to 2 (certain)" in out
    assert operator(sim, "apply")[0] == 0
    assert operator(sim, "plan")[0] == 0
    code, out, _err = operator(sim, "status", "--json")
    devices = {device["device"]: device for device in json.loads(out)["devices"]}
    assert devices[PF1]["now"]["vf_count"] == 2
    assert devices[EDU]["now"]["driver"] == "vfio-pci"
    assert operator(sim, "status")[0] == 0
    sim.reboot()
    assert operator(sim, "replay", "--device", EDU)[0] == 0
    assert sim.functions[EDU].driver == "vfio-pci"
    assert sim.functions[PF1].vfs == []
    assert operator(sim, "replay", "--json")[0] == 0
    assert len(sim.functions[PF1].vfs) == 2


def test_the_operators_status_tells_the_eswitch(operator):
    sim = switches()
    call(sim, sriov=[at(NSIM, vf_count=1, eswitch={"mode": "switchdev"})])
    _code, out, _err = operator(sim, "status", "--json")
    (device,) = json.loads(out)["devices"]
    assert (device["device"], device["now"]["eswitch"]) == (NSIM, {"mode": "switchdev"})


@pytest.mark.parametrize("arguments", [[], ["help"], ["plan", "x"], ["replay", "x"], ["replay", "--device"]])
def test_a_wrong_call(operator, arguments):
    assert operator(lab(), *arguments) == (2, "", cli.USAGE)


def test_a_damaged_state_file_is_a_sentence_here_too(operator):
    sim = lab()
    sim.replace("/etc/iovirt/vfio.json", "{")
    for words in (["status"], ["plan"], ["apply"], ["replay"]):
        code, _out, err = operator(sim, *words)
        assert code == 1
        assert err.startswith("iovirt: /etc/iovirt/vfio.json: ")


# --- Replay ----------------------------------------------------------------------------------------------------------


def test_the_replay_waits_for_a_driver_that_comes_late():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.reboot()
    sim.functions[PF1].driver = None
    sim._tree = None
    sim.later(20.0, lambda: setattr(sim.functions[PF1], "driver", "igb"))
    assert replay.run(sim.host(sources=None), None)["failures"] == {}
    assert len(sim.functions[PF1].vfs) == 2


def test_a_refused_device_does_not_keep_the_others():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=2)], vfio=[at(EDU)])
    sim.reboot()
    sim.nets["enp129s0"] = Net(addresses=["192.0.2.1"])
    sim._tree = None
    result = replay.run(sim.host(sources=None), None)
    assert list(result["failures"]) == [PF1]
    assert "192.0.2.1" in result["failures"][PF1]
    assert len(sim.functions[PF2].vfs) == 2
    assert sim.functions[EDU].driver == "vfio-pci"


def test_nothing_declared_is_nothing_done():
    sim = lab()
    assert replay.run(sim.host(sources=None), None)["actions"] == []
    assert [path for _what, path, _data in sim.log] == [replay.RESULT]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "1"])
def test_a_result_that_was_cut_off(text):
    assert replay.parse(text) is None


def test_a_read_only_usr_keeps_the_replay_off_no_host():
    """The operator's command is a convenience: where it cannot be written all else is there, and a second run is quiet."""
    sim = lab()
    write = sim.replace

    def read_only(path, text, mode=0o644):
        if path.startswith("/usr"):
            raise OSError(errno.EROFS, "Read-only file system", path)
        write(path, text, mode)

    sim.replace = read_only
    assert call(sim, vfio=[at(EDU)])["failures"] == {}
    assert sim.text(boot.RULES) and sim.text(boot.COMMAND) is None
    assert not call(sim, vfio=[at(EDU)])["changed"]


def test_network_devices_of_vfs_are_left_to_guests():
    """Not the port's own: only what hangs below a declared PF."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    rules = [line for line in sim.text(boot.RULES).splitlines() if "NM_UNMANAGED" in line]
    assert len(rules) == 1
    assert f"device/physfn/uevent}}==\"*PCI_SLOT_NAME={PF1}*\"" in rules[0]
    assert 'ENV{NM_UNMANAGED}="1"' in rules[0] and 'ENV{ID_NET_MANAGED_BY}="iovirt.host"' in rules[0]
    assert "Property=ID_NET_MANAGED_BY=iovirt.host" in sim.text(boot.NETWORK)
    call(sim, sriov=[], exclusive=("sriov",))
    assert sim.text(boot.NETWORK) is None


def test_the_operators_command_leaves_another_card_alone(operator):
    """As the replay does: a card that took the place of a declared one is none of ours, whatever was allowed there."""
    sim = lab()
    call(sim, vfio=[at(NVME), at(EDU)])
    sim.functions[NVME].serial = "OTHER"
    sim.reboot()
    code, out, _err = operator(sim, "apply")
    assert code == 1 and "another device" in out and "OTHER" in out
    assert sim.functions[NVME].driver == "nvme"
    assert sim.functions[EDU].driver == "vfio-pci"


def test_the_operators_command_needs_root(monkeypatch, capsys):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    assert cli.main(["plan"]) == 1
    assert "needs root" in capsys.readouterr().err


def test_vfs_that_the_host_had_before_stay_with_its_network_manager():
    sim = lab()
    sim.write(f"/sys/bus/pci/devices/{PF1}/sriov_numvfs", "2")
    call(sim, sriov=[at(PF1, vf_count=2, vfs=[{"range": "1", "driver": "vfio-pci"}])])
    assert f'KERNEL=="{PF1}"' in sim.text(boot.RULES)
    assert "NM_UNMANAGED" not in sim.text(boot.RULES)


def test_network_devices_that_are_there_get_their_marks_and_lose_them():
    """udev looks at its rules when there is an event."""
    sim = lab(igbvf_loaded=True)
    sim.write(f"/sys/bus/pci/devices/{PF1}/sriov_numvfs", "2")
    triggers = ["udevadm", "trigger", "--action=change", "/sys/class/net/enp129s0v0", "/sys/class/net/enp129s0v1"]
    call(sim, sriov=[at(PF1, vf_count=2)])
    assert triggers not in sim.commands
    for word in ("unmanaged", "managed"):
        sim.commands.clear()
        call(sim, sriov=[at(PF1, vf_count=2, vf_netdevs=word)])
        assert ("NM_UNMANAGED" in sim.text(boot.RULES)) == (word == "unmanaged")
        assert sim.commands.count(triggers) == 1
        call(sim, sriov=[at(PF1, vf_count=2, vf_netdevs=word)])
        assert sim.commands.count(triggers) == 1


def test_a_driver_that_is_still_probing_is_waited_for():
    """Its probe holds the device's lock, as a hanging write does, and ends."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.reboot()
    sim.stuck.add(PF2)
    sleep = sim.sleep

    def probed(seconds):
        sleep(seconds)
        sim.stuck.clear()

    sim.sleep = probed
    assert replay.run(sim.host(sources=None), None)["failures"] == {}
    assert len(sim.functions[PF1].vfs) == 2


def test_a_first_run_that_fails_leaves_no_replay_behind():
    sim = lab()
    before = sim.snapshot()
    sim.count_errno = errno.ENOMEM
    done = call(sim, sriov=[at(PF1, vf_count=2)])
    assert PF1 in done["failures"] and done["changed"] is False
    assert sim.snapshot() == before


def test_the_replay_is_for_those_that_did_not_fail():
    sim = lab(vfio_loaded=True)
    sim.count_errno = errno.ENOMEM
    done = call(sim, sriov=[at(PF1, vf_count=2)], vfio=[at(EDU)])
    assert PF1 in done["failures"] and done["changed"] is True
    assert EDU in sim.text(boot.RULES) and PF1 not in sim.text(boot.RULES)
    sim.count_errno = None
    quiet(sim, vfio=[at(EDU)])

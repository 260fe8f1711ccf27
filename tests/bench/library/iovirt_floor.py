# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor: the least that a module can be which looks at the host's links once."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    _code, out, _err = module.run_command(["ip", "-j", "-d", "link"], check_rc=True)
    module.exit_json(changed=False, links=len(json.loads(out)))


if __name__ == "__main__":
    main()

"""First entry of PYTHONPATH: a real worker arms the fault that its environment names.

It does so once it has imported what the fault wraps. The process that logs to W&B may be struck at
its start.
"""

import os
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class ArmAfter(MetaPathFinder):
    """Lets the import of plugin.worker's last module through, and arms behind it."""

    def find_spec(self, name, path=None, target=None):
        if name != "plugin.worker.train":  # the last one that its __main__ imports
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_arm(module):
            load(module)
            sys.path.append(os.environ["TRAINER_TEST_PATH"])
            from faults import inject

            inject.arm(os.environ[inject.FAULT])

        spec.loader.exec_module = load_and_arm
        return spec


if os.environ.get("TRAINER_TEST_FAULT"):
    sys.meta_path.insert(0, ArmAfter())

if "plugin.parent.wandb" in sys.orig_argv:
    if os.environ.get("TRAINER_TEST_RELAY") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if (
        os.environ.get("TRAINER_TEST_RELAY") == "spoil"
    ):  # where the library wants a folder there is a file
        open(os.path.join(sys.orig_argv[-1], "wandb"), "x").close()

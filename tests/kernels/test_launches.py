"""What the host code launches can be compiled, whatever is None, 1 or left out; see ``launches.py``."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_launch_is_lowered_for_a_device():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # Triton warns where a launch leaves fusing to a default that its next release changes
    command = [sys.executable, "-W", "error::UserWarning:triton.knobs", str(Path(__file__).with_name("launches.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]

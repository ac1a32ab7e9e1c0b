"""What the host code launches can be compiled, whatever is None, 1 or left out, and once; see ``launches.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["launches.py", "variants.py"])
def test_every_launch(script):
    """Each is lowered for a device, and none makes an address in 32 bits; no batch's counts compile a kernel anew."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # Triton warns where a launch leaves fusing to a default that its next release changes
    command = [sys.executable, "-W", "error::UserWarning:triton.knobs", str(Path(__file__).with_name(script))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

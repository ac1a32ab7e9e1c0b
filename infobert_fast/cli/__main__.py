"""``python -m infobert_fast.cli``, for launchers."""

import sys

from infobert_fast.cli import main

sys.exit(main())

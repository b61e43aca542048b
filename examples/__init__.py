"""`python -m examples.NAME` finds what stands beside the script, as its path does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

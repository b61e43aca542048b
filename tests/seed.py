"""The seed of the whole run: MAR_SNN_TEST_SEED=3 python -m pytest."""

import os

SEED = int(os.environ.get("MAR_SNN_TEST_SEED", "0"))

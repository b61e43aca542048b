"""The command line of lm_eval, which knows the model `mar` here.

    python -m mar_snn.harness --model mar --model_args pretrained=FOLDER --tasks piqa

lm_eval looks for no plug-ins, so somebody must import them before it starts.
"""

from lm_eval.__main__ import cli_evaluate

import mar_snn.harness  # noqa: F401  registers the model
from mar_snn.console import show_what_can_be_shown

if __name__ == "__main__":
    show_what_can_be_shown()
    cli_evaluate()

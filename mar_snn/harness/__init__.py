"""Judges language models with lm-evaluation-harness: any Llamba, dense or spiking.

Importing this package registers the model `mar` with `lm_eval`.
"""

from importlib.util import find_spec

if find_spec("lm_eval") is None:
    raise ImportError("mar_snn.harness needs lm-eval: pip install 'mar-snn[eval]'")

from mar_snn.harness.model import MarLM
from mar_snn.harness.report import compare, record, result_table
from mar_snn.harness.scores import Score, average, difference, evaluate
from mar_snn.harness.tasks import MAR6, file_tasks, load_tasks, text_task

__all__ = [
    "MAR6",
    "MarLM",
    "Score",
    "average",
    "compare",
    "difference",
    "evaluate",
    "file_tasks",
    "load_tasks",
    "record",
    "result_table",
    "text_task",
]

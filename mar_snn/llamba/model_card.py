"""The README.md of a saved model: what its configuration knows, and how to load it."""

import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from mar_snn.spiking import SpikingConfig

__all__ = ["CardedPreTrainedModel", "model_card"]

logger = logging.getLogger(__name__)

#: Stands in the card that transformers uploads where a repository has none.
_BLANK_CARD = "<!-- Provide a quick summary of what the model is/does. -->"


def model_card(model: PreTrainedModel, name: str) -> ModelCard:
    """The card of a Llamba model that stands under `name`, a folder or a hub id."""
    config = model.config
    kind = "dense" if config.spiking is None else "spiking"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    base = str(config._name_or_path or "")
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llamba", "mamba2", "mar-snn"] + ["spiking"] * (kind == "spiking"),
        base_model=base if known and base != name else None,
    )
    ssm = config.ssm_cfg
    heads = f"{ssm['n_v_heads']}, in groups: {ssm['n_qk_heads']}"
    return ModelCard(f"""---
{data.to_yaml()}
---

# {name.rsplit("/", 1)[-1]}

A {kind} Llamba: Llama with Mamba-2 mixers in the place of attention
([arXiv 2502.14458](https://arxiv.org/abs/2502.14458)).

```python
import mar_snn.llamba  # pip install mar-snn; makes the class known to transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```

| | |
|---|---|
| parameters | {parameters:,} |
| blocks | {config.n_layer} |
| hidden size | {config.d_model} |
| feed-forward | {config.mlp_cfg["intermediate_size"]} |
| heads of the scan | {heads}, state size {ssm["d_state"]} |
| vocabulary | {config.vocab_size} |
| LM head | {"the embedding" if config.tie_embeddings else "its own"} |
{_spikes(config.spiking)}
## Limitations

- The class is in mar-snn, not in transformers: without `import mar_snn.llamba` the
  model type `llamba` is unknown.
- Batches of prompts must be padded on the left. Speculative decoding and static caches
  are refused: the memory of the tokens read is one state of constant size.
- The configuration says nothing of training data, accuracy or licence, and so this card
  does not: add them.
""")


def _spikes(spiking: SpikingConfig | None) -> str:
    """What spikes, and how; nothing for a dense model."""
    if spiking is None:
        return ""
    blocks = "all" if spiking.layers is None else ", ".join(map(str, spiking.layers))
    return f"""
## What spikes

Neurons turn the inputs of projections into spikes, in T micro-steps inside one token
(MAR, [arXiv 2601.21503](https://arxiv.org/abs/2601.21503)).

| | |
|---|---|
| neuron | {spiking.neuron} |
| sites | {", ".join(spiking.sites)} |
| blocks | {blocks} |
| micro-steps T | {spiking.time_steps} |
| time constant tau | {spiking.tau:g} |
| fires at this share of the threshold, rho | {spiking.fire_ratio:g} |
| readout | {spiking.readout} |
"""


class CardedPreTrainedModel(PreTrainedModel):
    """A model whose `save_pretrained` and `push_to_hub` write its card too."""

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, **kwargs: Any
    ) -> None:
        """Configuration, weights, and a README.md where the folder has none."""
        super().save_pretrained(save_directory, *args, **kwargs)
        readme = Path(save_directory, "README.md")
        if not kwargs.get("is_main_process", True):
            return
        if readme.exists():
            logger.info("%s is there already and stays as it is", readme)
        else:
            model_card(self, Path(save_directory).resolve().name).save(readme)

    def _upload_modified_files(
        self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        # transformers has just put the hub's card here, or a blank one
        readme = Path(working_dir, "README.md")
        if _BLANK_CARD in readme.read_text(encoding="utf-8"):
            model_card(self, repo_id).save(readme)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

"""A saved model is ready for the hub: configuration, weights, and a card of facts."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import hub

from mar_snn.llamba import LlambaForCausalLM
from mar_snn.llamba.model_card import model_card
from mar_snn.spiking import SpikingConfig, spikify


@pytest.fixture
def spiking(config):
    chosen = SpikingConfig(time_steps=3, tau=0.25, sites=("mlp.in",), layers=(1,))
    return spikify(LlambaForCausalLM(config), chosen)


def test_a_spiking_model_says_what_spikes_and_how(spiking, tmp_path):
    spiking.save_pretrained(tmp_path / "small")
    files = {path.name for path in (tmp_path / "small").iterdir()}
    assert files >= {"README.md", "config.json", "model.safetensors"}
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "spiking" in card.data.tags
    assert card.data.get("base_model") is None
    parameters = sum(p.numel() for p in spiking.parameters())
    for row in (
        "# small",
        f"| parameters | {parameters:,} |",
        "| sites | mlp.in |",
        "| blocks | 1 |",
        "| micro-steps T | 3 |",
        "| time constant tau | 0.25 |",
        "| fires at this share of the threshold, rho | 0.666667 |",
        "| heads of the scan | 4, in groups: 2, state size 5 |",
    ):
        assert row in card.content


def test_a_dense_model_says_nothing_of_spikes(config, tmp_path):
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "spiking" not in card.data.tags
    assert "What spikes" not in card.content


def test_the_code_of_the_card_loads_the_model(spiking, tmp_path, monkeypatch):
    spiking.save_pretrained(tmp_path / "small")
    text = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert isinstance(names["model"], LlambaForCausalLM)
    assert names["model"].config.spiking == spiking.config.spiking


def test_a_card_that_is_there_stays(spiking, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("mine", encoding="utf-8")
    spiking.save_pretrained(tmp_path)
    assert readme.read_text(encoding="utf-8") == "mine"


def test_only_the_main_process_writes_it(spiking, tmp_path):
    spiking.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()


def test_the_base_model_is_named_where_it_is_one_of_the_hub(spiking, tmp_path):
    spiking.config._name_or_path = "cartesia-ai/Llamba-1B"
    assert model_card(spiking, "me/mine").data.base_model == "cartesia-ai/Llamba-1B"
    assert model_card(spiking, "cartesia-ai/Llamba-1B").data.base_model is None
    for folder in ("", str(tmp_path), "a/b/c"):
        spiking.config._name_or_path = folder
        assert model_card(spiking, "me/mine").data.base_model is None


@pytest.fixture
def uploads(monkeypatch) -> list[str]:
    """Cards that would go to the hub: nothing goes there."""
    seen: list[str] = []

    class Repository:
        repo_id = "me/small"

    class Api:
        def create_repo(self, *args, **kwargs):
            return Repository

    def look(self, working_dir, repo_id, *args, **kwargs):
        seen.append(Path(working_dir, "README.md").read_text(encoding="utf-8"))
        assert Path(working_dir, "model.safetensors").exists()

    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", Api)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", look)
    return seen


def test_push_to_hub_sends_the_card_with_the_name_of_the_repository(
    spiking, uploads, monkeypatch, tmp_path
):
    def load(repo_id, token=None):
        raise EntryNotFoundError("no card yet")

    monkeypatch.setattr(hub.ModelCard, "load", load)
    spiking.push_to_hub("me/small")
    spiking.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="me/small")
    for card in uploads:
        assert "# small\n" in card
        assert 'from_pretrained("me/small")' in card
        assert "| sites | mlp.in |" in card
    assert len(uploads) == 2


def test_push_to_hub_leaves_a_card_that_a_person_wrote(spiking, uploads, monkeypatch):
    written = ModelCard("---\nlicense: mit\n---\n# By hand\n")
    monkeypatch.setattr(hub.ModelCard, "load", lambda *args, **kwargs: written)
    spiking.push_to_hub("me/small")
    assert "# By hand" in uploads[0]
    assert "| sites |" not in uploads[0]

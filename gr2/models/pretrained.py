"""Hugging Face causal language models from a local folder: no network, no code of theirs, no pickle."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gr2.errors import ArtifactError
from gr2.quiet import without_bars

__all__ = ["load_pretrained"]


def load_pretrained(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode and in the dtype of its files, and the tokenizer in `folder`.

    Weights are safetensors, in one file or in shards. Raises ArtifactError that says what the folder lacks.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: no config.json: a folder with a Hugging Face causal language model is expected")
    try:
        with without_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
            )
    # transformers raises whatever its parsers and safetensors' do; each is a folder that cannot be read.
    except Exception as error:
        raise ArtifactError(f"{folder}: not a causal language model that can be read: {error}") from error
    return model.eval(), tokenizer  # type: ignore[no-untyped-call]

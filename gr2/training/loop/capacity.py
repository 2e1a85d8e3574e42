"""Whether what a model is to read at once fits into its context."""

from __future__ import annotations

from transformers import PreTrainedModel

from gr2.errors import ConfigError

__all__ = ["context_length", "refuse_long_prompts"]


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for, None where it counts none."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def refuse_long_prompts(model: PreTrainedModel, *, budget: int, answer: int) -> None:
    """Raise ConfigError if a prompt of `budget` tokens and an answer of so many are more than the model can read."""
    context = context_length(model)
    if context is None or budget + answer <= context:
        return
    room = context - answer
    mend = f"set budget to at most {room:,}" if room > 0 else "lower max_reasoning or list_size"
    raise ConfigError(
        f"budget: prompts of up to {budget:,} tokens and answers of up to {answer:,} make {budget + answer:,}, more "
        f"than the {context:,} that the model can read; {mend}"
    )

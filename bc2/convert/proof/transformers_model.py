"""What transformers says of a folder, loaded as everyone loads it, and computed in fp32.

It runs in a process of its own. Shapes: T tokens, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers

from bc2.convert.proof.consumer import Said
from bc2.errors import RunFailed

#: Rows of logits that are changed at once.
_ROWS = 64

#: Its own annotations say less than it does.
_library: Any = transformers


class TransformersTexts:
    """How transformers reads texts and conversations."""

    name = "transformers"
    version: str = transformers.__version__

    def __init__(self, folder: str, *, remote_code: bool):
        self._tokenizer = _library.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code
        )

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int] | None:
        try:
            found = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except (TypeError, UnicodeError):  # what its libraries say of a lone surrogate
            return None
        return cast("list[int]", found)

    def chat(self, messages: Sequence[Said], *, generation_prompt: bool) -> list[int] | None:
        if self._tokenizer.chat_template is None:
            return None
        found = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=generation_prompt, return_dict=False
        )
        return cast("list[int]", found)


def load_checked(auto: Any, tokenizer: Any, folder: str, *, remote_code: bool) -> Any:
    """A folder's model, by one of transformers' classes that choose one.

    Raises:
        RunFailed: it lacks weights, has some that the model has not, or ids that no row is of.
    """
    model, found = auto.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True,
        trust_remote_code=remote_code,
    )  # fmt: skip
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    if wrong:
        said = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise RunFailed(f"the weights are not those of its model: {said}")
    ids, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if ids > rows:
        raise RunFailed(f"its tokenizer has {ids:,} ids, and its table {rows:,} rows")
    return model.eval()


class TransformersModel(TransformersTexts):
    """A `Consumer`.

    Args:
        folder: what was written.
        remote_code: whether the code that lies in it is run.

    Raises:
        RunFailed: see `load_checked`.
    """

    def __init__(self, folder: str, *, remote_code: bool):
        super().__init__(folder, remote_code=remote_code)
        auto = _library.AutoModelForCausalLM
        self._model = load_checked(auto, self._tokenizer, folder, remote_code=remote_code)

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = self._model(torch.tensor([ids]), use_cache=False).logits[0].float()
        for rows in torch.split(logits, _ROWS):  # in place: of a large vocabulary they are much
            rows -= rows.logsumexp(-1, keepdim=True)
        return cast("npt.NDArray[np.float32]", logits.numpy())

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        # Of a model's own settings none is to count: neither a penalty nor an end.
        self._model.generation_config = _library.GenerationConfig(pad_token_id=0)
        given = torch.tensor([ids])
        said = self._model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count
        )
        return cast("list[int]", said[0, len(ids) :].tolist())

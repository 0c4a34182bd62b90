"""The configuration of a decoder: Baichuan 2, Table 3 and section 2.5. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bc2.errors import RecipeError
from bc2.model.model_formulas import HeadKind, ModelFormulas
from bc2.model.rope_scaling import RopeScaling
from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, KEYED_UNLESS_DEFAULT, Recipe, Section

#: Settings in which a model may differ from the weights that it begins with: they change no shape
#: of a layer, or only the head's, which is then drawn from the seed.
_MAY_DIFFER = {"head", "num_classes", "context_length", "initializer_range"}


class ModelConfig(Section, ModelFormulas):
    """A pre-norm decoder with SwiGLU, RMSNorm, RoPE or ALiBi.

    The defaults are Baichuan 2's. What other families differ by is at the end.
    """

    section: ClassVar[str] = "model"

    vocab_size: int = Field(gt=0, lt=2**31)
    """Rows of the embedding and of a language head (125,696 in Baichuan 2)."""

    hidden_size: int = Field(gt=0, le=2**24)
    """Width D of the residual stream."""

    intermediate_size: int = Field(gt=0, le=2**24)
    """Width F of the feed-forward layer (8/3 D rounded up to a multiple of 128 in the paper)."""

    num_layers: int = Field(gt=0, le=10_000)
    """Decoder layers."""

    num_heads: int = Field(gt=0, le=2**24)
    """Attention heads H; each has `head_dim` channels."""

    position: Literal["rope", "alibi"] = "rope"
    """How attention encodes positions: rotary embedding (7B) or linear biases (13B)."""

    rope_base: float = Field(default=10000.0, gt=0, ge=1, le=FP32_LARGEST)
    """Base of the rotary wavelengths; has no effect with ALiBi."""

    context_length: int = Field(default=4096, gt=0, lt=2**31)
    """The longest sequence that the model reads, in tokens."""

    norm_eps: float = Field(default=1e-6, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """Added to the mean square in RMSNorm."""

    norm_head: bool = True
    """NormHead: the head's rows are scaled to unit length in every forward pass (section 2.5).

    Has no effect with another head than a language head.
    """

    initializer_range: float = Field(default=0.02, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """Standard deviation of the initial weights of linear layers and the embedding."""

    head: HeadKind = Field("language", json_schema_extra=KEYED_UNLESS_DEFAULT)
    """What the model says of a token: logits of the next one, a number, or logits of classes."""

    num_classes: int | None = Field(None, ge=2, lt=2**31, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Classes of a classes head, which needs it; of no other head."""

    num_kv_heads: int | None = Field(None, gt=0, le=2**24, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Heads of keys and values, each read by as many query heads (grouped-query attention, arXiv
    2305.13245). None: num_heads."""

    head_dim: int | None = Field(None, gt=0, le=2**24, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Channels K of a head. None: hidden_size / num_heads."""

    qkv_bias: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Whether queries, keys and values have a bias (Qwen 2)."""

    qk_norm: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """RMSNorm of each query and key, over the channels of its head, before RoPE (Qwen 3)."""

    rope_scaling: RopeScaling | None = Field(None, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Rotary wavelengths stretched for longer texts than a model was trained on (Llama 3.1)."""

    tied: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Whether a language head has the embedding's rows, and no parameter of its own.

    With norm_head it scales them to unit length, and the embedding looks them up as they are. Has
    no effect with another head.
    """

    sliding_window: int | None = Field(None, gt=0, lt=2**31, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Tokens that each attends to, the last of them itself (Mistral). None: all before it."""

    @model_validator(mode="before")
    @classmethod
    def _one_model_is_said_in_one_way(cls, data: Any) -> Any:
        """Leave out what follows: or a model would have two keys, and differ from itself."""
        if not isinstance(data, dict):
            return data
        heads, width = data.get("num_heads"), data.get("hidden_size")
        follows = {"num_kv_heads": heads}
        if isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0:
            follows["head_dim"] = width // heads
        return {
            name: value for name, value in data.items()
            if name not in follows or value is None or value != follows[name]
        }  # fmt: skip

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.kv_heads}"
            )
        if self.position == "rope" and self.head_size % 2:
            name = "head_dim" if self.head_dim else "hidden_size / num_heads"
            raise ValueError(
                f"rope rotates pairs of channels, but {name} = {self.head_size} is odd"
            )
        return self

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        scaling = self.rope_scaling
        if self.position != "rope" and scaling is not None:
            raise ValueError(f'rope_scaling is for position = "rope", not "{self.position}"')
        if self.position != "rope" and self.sliding_window is not None:
            raise ValueError(f'sliding_window is for position = "rope", not "{self.position}"')
        if scaling is not None and scaling.kind == "yarn" and self.rope_base <= 1:
            raise ValueError("yarn needs a rope_base above 1")
        return self

    @model_validator(mode="after")
    def _classes_are_those_of_a_head(self) -> Self:
        if self.head == "classes" and self.num_classes is None:
            raise ValueError('head = "classes" needs num_classes')
        if self.head != "classes" and self.num_classes is not None:
            raise ValueError(f'num_classes is for head = "classes", not "{self.head}"')
        return self


def differences(there: ModelConfig, here: ModelConfig) -> dict[str, str]:
    """What keeps a model from beginning with the weights of another one, by setting, in words."""
    one, other = there.model_dump(), here.model_dump()
    return {
        name: f"{name} is {one[name]} there and {other[name]} here"
        for name in other
        if one[name] != other[name] and name not in _MAY_DIFFER
    }


def check_language_head(recipe: Recipe, what: str) -> None:
    """Refuse a recipe whose [model] says no next token.

    Args:
        what: what needs one, the subject of the error.

    Raises:
        RecipeError: the head is another one.
    """
    head = recipe.get(ModelConfig).head
    if head != "language" and ModelConfig.section in recipe.borrowed:
        raise RecipeError(
            f"{what} needs a model that says a next token, and what it begins with has a {head} "
            "head, as reward models have",
            where=recipe.where(("model", "head")),
            todo="name a base or chat model as init: bc2 registry list --kind checkpoint",
        )
    if head != "language":
        raise RecipeError(
            f'{what} needs a language head, and model.head = "{head}"',
            where=recipe.where(("model", "head")),
            todo='set model.head = "language"',
        )

"""A conversation with a model: its rounds, how answers are drawn, and who speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bc2.chat.dialogue import Dialogue, Round, room_for
from bc2.errors import DataError, UsageError, nearest
from bc2.generate.sampling.seeds import prompt_seed
from bc2.generate.sampling_config import SamplingConfig
from bc2.report.continuations import finish_reason, text_of

if TYPE_CHECKING:
    from bc2.chat.saved import Saved
    from bc2.chat.speaker import Speaker
    from bc2.registry import Artifact

#: Settings that may be changed between turns.
PARAMS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """An answer, and what is to be said of it."""

    text: str
    ids: Sequence[int]
    """Of the answer, as they were sampled."""
    finish_reason: str
    """eos, stop_id, stop, length, or interrupted."""
    left_out: int
    """Rounds, the oldest, that the window had no room for."""
    cut: int
    """Tokens of the message's beginning that it had no room for."""
    prompt_tokens: int
    """Tokens before the answer."""
    read_tokens: int
    """Those of them that the cache did not have."""


class Talk:
    """Keeps a conversation going; after an error all is as it was before the message.

    Args:
        settings: of the first answer; each later one has a seed of its own, made from theirs.
        artifact: the model.

    Raises:
        UsageError: an answer may fill the whole window.
    """

    def __init__(
        self, dialogue: Dialogue, speaker: Speaker, settings: SamplingConfig, artifact: Artifact
    ):
        room_for(dialogue.window, settings.max_new_tokens)
        self.dialogue = dialogue
        self.speaker = speaker
        self.settings = settings
        self.artifact = artifact

    def say(self, message: str, show: Callable[[str], None]) -> Turn:
        """Answer a message.

        Args:
            show: called with each piece of the answer's text as it is there.

        Raises:
            DataError, UsageError: see `Dialogue.ask` and `Session.submit`.
        """
        dialogue, stats = self.dialogue, self.speaker.stats
        question = dialogue.ask(message, self.settings.max_new_tokens)
        seed = prompt_seed(self.settings.seed, len(dialogue.rounds))
        shared = stats.shared_tokens
        made = self.speaker.answer(
            question.prompt, self.settings.model_copy(update={"seed": seed}), show
        )
        text = text_of(made)
        dialogue.add(question, made.ids, text)
        reason = finish_reason(made, dialogue.chat.tokenizer.eos_id)
        return Turn(
            text,
            made.ids,
            "interrupted" if reason == "cancelled" else reason,
            question.left_out,
            question.cut,
            len(question.prompt),
            len(question.prompt) - (stats.shared_tokens - shared),
        )

    @property
    def params(self) -> dict[str, Any]:
        """The settings of `PARAMS`."""
        return {name: getattr(self.settings, name) for name in PARAMS}

    def set_params(self, values: Mapping[str, Any]) -> None:
        """Change settings of `PARAMS`; all of them, or none.

        Raises:
            UsageError: an unknown one, or an impossible value.
        """
        for name in values:
            if name not in PARAMS:
                guess = nearest(name, PARAMS)
                todo = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(PARAMS)}"
                raise UsageError(f"no such setting: {name!r}", todo=todo)
        try:
            changed = SamplingConfig.model_validate({**self.settings.model_dump(), **values})
        except ValidationError as error:
            first = error.errors()[0]
            said = f"{first['loc'][0]}: {first['msg'].lower()}, not {first['input']}"
            raise UsageError(said) from None
        room_for(self.dialogue.window, changed.max_new_tokens)
        self.settings = changed

    def restore(self, saved: Saved) -> str | None:
        """Go on with a conversation that was saved, its settings included if its model is this.

        Returns:
            Why its tokens were made anew from its texts; None: they are as they were sampled.

        Raises:
            DataError: the layout has no place for it, or its settings are none; nothing is changed.
        """
        before = self.dialogue
        same = saved.digest == self.artifact.digest
        dialogue = Dialogue(before.chat, before.window, saved.system)
        dialogue.rounds = list(saved.rounds)
        if not (same and saved.intact):
            dialogue.rounds = _anew(dialogue)
        if same:
            try:
                self.set_params(saved.sampling)
            except UsageError as error:
                raise DataError(f"`sampling`: {error.what}", todo=error.todo) from None
        self.dialogue = dialogue
        if not same:
            return f"it was held with another model, {saved.title}"
        return None if saved.intact else "its texts were edited"


def _anew(dialogue: Dialogue) -> list[Round]:
    """The rounds of a conversation, with the tokens of their texts."""
    if not dialogue.rounds:
        return []
    turns = dialogue.chat.turns(dialogue.messages)
    return [
        Round(one.user, one.answer, tuple(asked), tuple(said))
        for one, asked, said in zip(dialogue.rounds, turns[::2], turns[1::2], strict=False)
    ]

"""The forms of scaling laws, by name."""

from __future__ import annotations

from bc2.errors import UsageError, nearest
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.forms.form import Form
from bc2.scaling.forms.kaplan import KAPLAN, KAPLAN_DATA, KAPLAN_SIZE
from bc2.scaling.forms.power import POWER

#: A new form: its file here, and its line here.
FORMS: dict[str, Form] = {
    form.name: form for form in (POWER, KAPLAN_SIZE, KAPLAN_DATA, KAPLAN, CHINCHILLA)
}


def form_of(name: str) -> Form:
    """The form of a name. Raises: UsageError if there is none."""
    if name in FORMS:
        return FORMS[name]
    guess = nearest(name, [*FORMS, "isoflop"])
    todo = f"did you mean {guess!r}?" if guess else f"forms: {', '.join(FORMS)}, isoflop"
    raise UsageError(f"no such form of a scaling law: {name!r}", where="--form", todo=todo)

"""Which telephone numbers are in use, by the table of Google's libphonenumber.

The package `phonenumbers` carries the table. Its patterns are compiled here, because reading a
number with the package takes 50 µs, and text may be full of numbers.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple


class _Plan(NamedTuple):
    """The numbers of a region."""

    general: re.Pattern[str]
    """Of the right length and beginning."""
    in_use: re.Pattern[str]
    """Of a kind in use; only those of `general` count."""


def is_number(code: int, national: str) -> bool:
    """Whether a number is in use in one of the regions with a country code."""
    return any(
        plan.general.fullmatch(national) and plan.in_use.fullmatch(national)
        for plan in _plans(code)
    )


def is_country_code(digits: str) -> bool:
    """Whether digits are the code of a country."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    return int(digits) in COUNTRY_CODE_TO_REGION_CODE


def is_number_abroad(digits: str) -> bool:
    """Whether digits are the code of a country and what may be a number there.

    A national prefix of 0 after the code, which people often write, is passed over.
    """
    for length in (1, 2, 3):
        if is_country_code(digits[:length]):
            code = int(digits[:length])
            national = digits[length:]
            forms = (national, national[1:]) if national[:1] == "0" else (national,)
            return any(plan.general.fullmatch(form) for plan in _plans(code) for form in forms)
    return False


@cache
def _plans(code: int) -> tuple[_Plan, ...]:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata

    plans = []
    for region in COUNTRY_CODE_TO_REGION_CODE[code]:
        of: Any = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
        kinds = (
            of.fixed_line, of.mobile, of.toll_free, of.premium_rate, of.shared_cost, of.voip,
            of.personal_number, of.pager, of.uan, of.voicemail,
        )  # fmt: skip
        patterns = [kind.national_number_pattern for kind in kinds if kind is not None]
        union = "|".join(f"(?:{pattern})" for pattern in patterns if pattern)
        plans.append(_Plan(re.compile(of.general_desc.national_number_pattern), re.compile(union)))
    return tuple(plans)

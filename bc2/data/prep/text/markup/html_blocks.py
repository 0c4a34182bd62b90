"""Elements of HTML, tags of templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bc2.data.prep.text.markup.lines import Lines

#: Tags of templates, and remarks of MDX.
_TEMPLATE_CODE = re.compile(
    r"\A\{(?:%-?|\{[<%])[ ]{0,9}(highlight|raw|codeblock|code|verbatim|prism)\b"
)
_TEMPLATE = re.compile(r"\A\{(?:%.*%|\{.*\}|/\*.*\*/)\}$")

#: Elements of HTML that begin a block; those of the second pattern last until they are closed.
_HTML = re.compile(
    r"\A(?:</?(?:address|article|aside|blockquote|body|br|center|col|dd|details|div|dl|dt|fieldset|"
    r"figure|figcaption|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|li|link|main|meta|"
    r"nav|ol|option|p|param|picture|section|source|summary|t[dhr]|tbody|tfoot|thead|title|ul|video)"
    r"(?:[\s/>]|$)|<[!?]|</?[A-Za-z][\w.-]*(?:\s[^<>]*)?>\s*$)",
    re.IGNORECASE,
)
_RAW = re.compile(r"\A<(script|style|svg|pre|table|textarea|syntaxhighlight)(?=[\s>]|$)", re.I)
_TAG = re.compile(r"<[^<>]*>")

#: A line of HTML with more characters outside of tags is prose.
_LONGEST_LABEL = 60


def raw_element(lines: Lines, bare: str, names: Sequence[str]) -> int | None:
    """An element that lasts until it is closed, if it has one of some names."""
    raw = _RAW.match(bare)
    if raw is None or raw[1].lower() not in names:
        return None
    last = f"</{raw[1].lower()}>"
    end = lines.find(lines.at, lambda line: last in line.lower(), last)
    return None if end is None else end + 1


def html_code(lines: Lines, bare: str) -> int | None:
    return raw_element(lines, bare, ("pre", "textarea", "syntaxhighlight"))


def html_table(lines: Lines, bare: str) -> int | None:
    return raw_element(lines, bare, ("table",))


def html_element(lines: Lines, bare: str) -> int | None:
    if (end := raw_element(lines, bare, ("script", "style", "svg"))) is not None:
        return end
    if bare.startswith("<!--"):
        end = lines.find(lines.at, lambda line: "-->" in line, "-->")
        return None if end is None else end + 1
    if not _HTML.match(bare) or len(_TAG.sub("", bare)) > _LONGEST_LABEL:
        return None
    return lines.at + 1


def template_code(lines: Lines, bare: str) -> int | None:
    """Code between the tags of a template, as Jekyll, Liquid and Hugo write them."""
    opening = _TEMPLATE_CODE.match(bare)
    if opening is None:
        return None
    ends = (f"end{opening[1]}", f"/{opening[1]}")
    end = lines.find(lines.at, lambda line: any(last in line for last in ends), ends[0])
    return None if end is None else end + 1


def template(lines: Lines, bare: str) -> int | None:
    if bare.startswith("{/*"):
        end = lines.find(lines.at, lambda line: "*/}" in line, "*/}")
        return None if end is None else end + 1
    return lines.at + 1 if _TEMPLATE.match(bare) else None

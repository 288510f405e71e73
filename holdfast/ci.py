"""What a continuous integration reads: JUnit XML, a summary and annotations of GitHub Actions. Knows nothing of models."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from holdfast import disk
from holdfast.markdown import quoted
from holdfast.problem import Problem, printable


class Ruling(NamedTuple):
    """What became of one rule."""

    about: str
    """Of which part of what was judged it speaks."""
    rule: str
    passed: bool
    says: str
    """The reason, in one sentence."""


def junit(suites: Mapping[str, Sequence[Ruling]]) -> bytes:
    """JUnit's XML: a suite for each thing judged, a case for each rule."""
    root = ElementTree.Element(
        "testsuites", name="holdfast gate", **_counts([one for some in suites.values() for one in some])
    )
    for name, rulings in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", name=printable(name), **_counts(rulings))
        for one in rulings:
            case = ElementTree.SubElement(suite, "testcase", classname=printable(one.about), name=printable(one.rule))
            if one.passed:
                ElementTree.SubElement(case, "system-out").text = printable(one.says)
            else:
                failure = ElementTree.SubElement(case, "failure", message=printable(one.says), type="rule")
                failure.text = printable(one.says)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _counts(rulings: Sequence[Ruling]) -> dict[str, str]:
    failures = sum(not one.passed for one in rulings)
    return {"tests": str(len(rulings)), "failures": str(failures), "errors": "0", "skipped": "0"}


def summary(suites: Mapping[str, Sequence[Ruling]]) -> str:
    """Markdown for the job's page."""
    passed = all(one.passed for some in suites.values() for one in some)
    lines = [f"## holdfast gate: {'passed' if passed else 'failed'}", ""]
    for name, rulings in suites.items():
        lines += [f"**{quoted(name)}**", "", "| | about | rule | why |", "|---|---|---|---|"]
        lines += [
            f"| {'✅' if one.passed else '❌'} | {quoted(one.about)} | {quoted(one.rule)} | {quoted(one.says)} |"
            for one in rulings
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def summarize(suites: Mapping[str, Sequence[Ruling]]) -> None:
    """Append the summary where GitHub Actions asks for it; without it do nothing.

    The runner gives the file, so it is written on, not replaced. Raises `Problem` if that cannot be done.
    """
    if place := os.environ.get("GITHUB_STEP_SUMMARY"):
        with disk.explained(Path(place)):
            try:
                with open(place, "a", encoding="utf-8") as file:
                    file.write(summary(suites))
            except FileNotFoundError:
                raise Problem(f"{place}: no such folder for the summary; mend or unset GITHUB_STEP_SUMMARY") from None


def annotations(suites: Mapping[str, Sequence[Ruling]]) -> list[str]:
    """A line for each rule that failed, as GitHub Actions reads it; none elsewhere."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return []
    return [
        f"::error title={_property(f'holdfast gate, {name}: {one.rule}')}::{_data(f'{one.about}: {one.says}')}"
        for name, rulings in suites.items()
        for one in rulings
        if not one.passed
    ]


def _data(text: str) -> str:
    """Escaped as a workflow command's message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escaped as a workflow command's property."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")

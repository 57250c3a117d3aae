"""`vaekit doctor`: report what this machine can run, and what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaekit.errors import ProviderError
from vaekit.output.table import text_table
from vaekit_cli.console import print_document
from vaekit_cli.options import JsonOption

if TYPE_CHECKING:
    from vaekit.diagnose.doctor import Report

_WORDS = {"runs": "runs", "fails": "does not run", "missing": "not installed"}


def doctor(as_json: JsonOption = False) -> None:
    """Describe this machine, test execution providers, and say how to install others."""
    from vaekit.diagnose.doctor import examine

    report = examine()
    if as_json:
        print_document(report)
    else:
        for line in _lines(report):
            print(line)
    if not any(provider.state == "runs" for provider in report.providers):
        raise ProviderError(f"no provider works: {'; '.join(report.problems) or 'none could run the test model'}")


def _lines(report: Report) -> list[str]:
    int8 = "yes" if report.fast_int8 else "no (INT8 is hardly faster, and only exact with reduce_range)"
    facts = [
        ("vaekit", report.vaekit),
        ("python", report.python),
        ("platform", report.platform),
        ("processor", f"{report.processor}; {report.cpus} usable, {report.memory_gb:.1f} GB of memory available"),
        ("instructions", ", ".join(report.flags) or "unknown"),
        ("fast int8", int8),
        ("onnxruntime", ", ".join(report.wheels) or report.onnxruntime or "none"),
        *([("plugins", ", ".join(report.plugins))] if report.plugins else []),
        *(("problem", problem) for problem in report.problems),
    ]
    providers = [
        (provider.name, _WORDS[provider.state], provider.detail if provider.state != "missing" else provider.install)
        for provider in report.providers
    ]
    return [*text_table(facts), "", *text_table(providers)]

"""`vaekit verify`: check that this machine reproduces the bundle's golden vectors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import CheckError, UsageError
from vaekit.output.table import printable, text_table
from vaekit_cli.bundle_options import Runtime, runs_a_bundle
from vaekit_cli.console import speaker
from vaekit_cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from vaekit.verify import OutputCheck, Verification


@runs_a_bundle
def verify(
    runtime: Runtime,
    signed_by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The public key, or a file with one, that must have signed the bundle (see sign)."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the bundle's golden vectors and compare with PyTorch's results.

    The exit code is 3 if they differ. A compressed bundle is compared with the results of its own graphs on the machine
    that compressed it.
    """
    say = speaker(quiet or as_json)
    if runtime.size is not None:
        raise UsageError("verify accepts no --size, because the golden vectors have the bundle's default size")
    runtime.signed_by = signed_by
    vae = runtime.load()
    found, signed = vae.verify(), vae.bundle.signed
    if as_json:
        signature = None if signed is None else {"key": signed.key_name, "comment": signed.comment}
        print(json.dumps(found.to_json() | {"signature": signature}, allow_nan=False))
    else:
        if signed is not None:
            print(f"signed by {printable(signed.describe())}")
        for reason in found.fell_back:
            say(reason)
        for line in _lines(found):
            print(line)
    if not found.passed:
        compressed = "compression" in vae.manifest.provenance
        raise CheckError(_complaint(found, "the compressed graphs" if compressed else "PyTorch"))


def _lines(found: Verification) -> list[str]:
    from vaekit.ort.providers import display_name

    head = ("graph", "output", "max |a - b|", "max rel", "PSNR", "pixels off", "atol", "rtol", "")
    rows = [head, *map(_row, found.outputs)]
    placed = [
        f"{graph}: {count} of {sum(nodes.values())} nodes on {display_name(name)}"
        for graph, nodes in found.placement.items()
        for name, count in nodes.items()
    ]
    verdict = "holds" if found.passed else "does not hold"
    return [*text_table(rows), *placed, f"verify {verdict} on {found.provider}"]


def _row(check: OutputCheck) -> tuple[str, ...]:
    return (
        check.graph,
        check.output,
        f"{check.max_abs:.2e}",
        f"{check.max_rel:.2e}",
        "equal" if check.psnr is None else f"{check.psnr:.1f} dB",
        "" if check.differing_pixels is None else f"{check.differing_pixels:,}",
        f"{check.tolerance.atol:g}",
        f"{check.tolerance.rtol:g}",
        "holds" if check.passed else "differs",
    )


def _complaint(found: Verification, who: str) -> str:
    failed = [f"{check.graph} output {check.output}" for check in found.outputs if not check.passed]
    causes = "; ".join(found.causes) or (
        "no likely cause is known; run `vaekit verify --provider cpu` to see if the provider is at fault"
    )
    return f"this machine's results differ from those of {who}: {', '.join(failed)} on {found.provider}. {causes}"

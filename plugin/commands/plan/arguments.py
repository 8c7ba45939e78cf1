"""Command-line arguments of `plan`, as one checked request.

Numbers stay text until all of them are read, so that every mistake is reported together. Imports no
torch.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.errors import JobError, Problem, first_line
from ...config.command_line import CommandLine
from ...config.families import FAMILIES
from ...config.methods import METHODS
from ...config.model_files import read_small
from ...config.wording import did_you_mean, quoted
from ...data.stored.manifest import Manifest, read_manifest
from ...planning.budget import HIGH_RATIO, LOW_RATIO, MIDDLE_RATIO, ROWS, Law
from ...planning.gpus import GPUS
from ...planning.shapes import TILE
from ...planning.sizes import LENGTH, SIZES, VOCABULARY

QUOKKA = (
    f"{MIDDLE_RATIO:g} tokens a parameter ({LOW_RATIO:g} to {HIGH_RATIO:g}: 20 of Chinchilla, "
    "times the square of the 2 to 5 by which masked diffusion wants more data, arXiv 2510.03280)"
)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A checked command line of `plan`."""

    flops: float | None
    tokens: float | None
    data: str  # the prepared folder that `tokens` come from, or empty
    model: int | None
    model_config: str
    law: Law
    method: str  # empty: the first method of the family
    max_length: int | None
    rows: int
    stochastic_length: float
    machines: int
    gpus_each: int
    gpus: tuple[str, ...]
    mfu: float | None
    price: float | None
    vocabulary: int
    dataset_name: str
    tokenizer_name: str
    out: Path | None
    grid: tuple[float, ...]
    sizes: tuple[int, ...]
    fit: tuple[Path, ...]
    png: Path | None
    json: bool

    @property
    def devices(self) -> int:
        return self.machines * self.gpus_each


def plan_options(argv: Sequence[str]) -> PlanRequest:
    """Parse and check the arguments of `plan`. Raises JobError (exit 2) with every problem."""
    return _Reader(_parser().parse_args(argv)).request()


def _parser() -> CommandLine:
    parser = CommandLine(
        prog="main.py plan",
        description="Plan a run: steps, tokens, hours, memory and cost of a size and a budget; write its "
        "job, a grid of isoFLOP jobs, or fit scaling laws to finished runs.",
        allow_abbrev=False,
    )

    def add(name: str, metavar: str, text: str, **how: Any) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, help=text.replace("%", "%%"), **how)

    add("flops", "F", "budget in FLOPs, 6 a parameter and token: 100e18")
    add("tokens", "N", "budget in tokens")
    add("data", "DIR|N", "budget: one pass over a folder made by prepare, or N tokens")
    add("model", "SIZE", "published size in millions of parameters: " + ", ".join(map(str, SIZES)))
    add("model_config", "FILE", f"config.json of a new model instead ({', '.join(FAMILIES)})")
    add("tokens_per_parameter", "R", f"without a size, the best one has R; default: {QUOKKA}")
    add("law", "FILE", "without a size, the best one by what `plan --fit RUNS --json` printed")
    add("training_method", "NAME", f"method of the job: {', '.join(METHODS)}")
    add("max_length", "N", f"tokens of a row [{LENGTH}, or fewer if the model takes no more]")
    add("batch_size", "N", f"rows of a step over all machines [{ROWS}, the published]")
    add("stochastic_length", "R", "share of rows cut at a random length [0]")
    add("num_machines", "N", "machines [1]")
    add("num_gpus", "N", "GPUs of each machine [1]")
    add("gpu", "NAME", f"GPUs to plan for, several allowed: {', '.join(GPUS)}", nargs="+")
    add("mfu", "R", "share of the GPU's peak, where none was measured here: 0.4")
    add("price_per_hour", "P", "price of a GPU's hour")
    add(
        "vocab_size",
        "N",
        f"rows of the embedding of a published size [{VOCABULARY}, or as data's tokenizer needs]",
    )
    add("dataset_name", "NAME", "data of the written jobs, where data is no prepared folder")
    add("tokenizer_name", "NAME", "tokenizer of the written jobs")
    add("out", "PATH", "write job.yaml and its model's config.json; with --grid, their folder")
    add("grid", "F1,F2,...", "write a job for each of these budgets and each of --sizes")
    add("sizes", "A,B,...", "published sizes of --grid")
    add("fit", "RUNS", "fit scaling laws to finished runs: folders of runs", nargs="+")
    add("png", "FILE", "with --fit: draw the fit")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


class _Reader:
    """Conversion of the options' texts; problems are collected."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._problems = options, list[Problem]()

    def request(self) -> PlanRequest:
        options = self._options
        law = self._law()
        manifest = self._manifest()
        tokens, data = self._tokens_of_data(manifest), self._options.data if manifest else ""
        words = manifest.tokenizer.vocab_size if manifest else VOCABULARY
        vocabulary = -(-words // TILE) * TILE  # spare rows: see planning/shapes.py
        stated = self._number("tokens", "a number of tokens above 0")
        request = PlanRequest(
            flops=self._number("flops", "a number of FLOPs above 0"),
            tokens=tokens if stated is None else stated,
            data=data,
            model=self._size("model", options.model),
            model_config=options.model_config or "",
            law=law or Law.of_ratio(MIDDLE_RATIO, QUOKKA),
            method=self._choice("training_method", options.training_method, METHODS),
            max_length=self._whole("max_length"),
            rows=self._whole("batch_size") or ROWS,
            stochastic_length=self._share("stochastic_length") or 0.0,
            machines=self._whole("num_machines") or 1,
            gpus_each=self._whole("num_gpus") or 1,
            gpus=tuple(self._choice("gpu", name, GPUS) for name in options.gpu or ()),
            mfu=self._share("mfu", least=1e-6),
            price=self._number("price_per_hour", "a price above 0"),
            vocabulary=self._whole("vocab_size") or vocabulary,
            dataset_name=options.dataset_name or data,
            tokenizer_name=options.tokenizer_name or "",
            out=Path(options.out).expanduser() if options.out else None,
            grid=tuple(self._grid()),
            sizes=tuple(self._sizes()),
            fit=tuple(Path(place).expanduser() for place in options.fit or ()),
            png=Path(options.png).expanduser() if options.png else None,
            json=options.json,
        )
        self._check_combination(request)
        if self._problems:
            raise JobError(*self._problems)
        return request

    def _problem(self, field: str, expected: str, got: str, fix: str = "") -> None:
        self._problems.append(Problem(field, expected, got, fix))

    def _read(self, field: str, text: str, expected: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value > 0:
            return value
        self._problem(field, expected, quoted(text))
        return None

    def _number(self, field: str, expected: str) -> float | None:
        text = vars(self._options)[field]
        return None if text is None else self._read(field, text, expected)

    def _whole(self, field: str) -> int | None:
        text, most = vars(self._options)[field], 2**24
        if text is None:
            return None
        if text.isascii() and text.isdigit() and 0 < int(text[:9]) <= most:
            return int(text[:9])
        self._problem(field, f"an integer >= 1 and <= {most}", quoted(text))
        return None

    def _share(self, field: str, least: float = 0.0) -> float | None:
        text = vars(self._options)[field]
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if least <= value <= 1:
            return value
        self._problem(field, "a share from 0 to 1", quoted(text))
        return None

    def _choice(self, field: str, text: str | None, known: Any) -> str:
        if text is None or text in known:
            return text or ""
        self._problem(field, f"one of {', '.join(known)}", quoted(text), did_you_mean(text, known))
        return ""

    def _size(self, field: str, text: str | None) -> int | None:
        if text is None:
            return None
        if text.isascii() and text.isdigit() and int(text[:9]) in SIZES:
            return int(text[:9])
        fix = f"The published sizes are {', '.join(map(str, SIZES))}."
        try:
            wanted = float(text)
            near = min(SIZES, key=lambda name: abs(name - wanted))
            fix = f"The nearest published size is {near}."
        except ValueError:
            pass
        self._problem(field, "a published size in millions", quoted(text), fix)
        return None

    def _sizes(self) -> list[int]:
        texts = (self._options.sizes or "").split(",")
        return [size for text in texts if text and (size := self._size("sizes", text.strip()))]

    def _grid(self) -> list[float]:
        texts = [text.strip() for text in (self._options.grid or "").split(",")]
        found = [self._read("grid", text, "budgets in FLOPs: 1e18,3e18") for text in texts if text]
        return [flops for flops in found if flops]

    def _manifest(self) -> Manifest | None:
        """Return the manifest of --data, None where it is no prepared folder."""
        folder = Path(self._options.data or "").expanduser()
        if not self._options.data or not folder.is_dir():
            return None
        try:
            return read_manifest(folder)
        except JobError as error:
            self._problems += [replace(found, field="data") for found in error.problems]
            return None

    def _tokens_of_data(self, manifest: Manifest | None) -> float | None:
        """Return the tokens that --data trains on."""
        if manifest:
            return float(sum(one.tokens for one in manifest.shards if one.split == "train"))
        text = self._options.data
        if text is None or Path(text).expanduser().is_dir():
            return None
        return self._read("data", text, "a folder made by prepare, or a number of tokens above 0")

    def _law(self) -> Law | None:
        options = self._options
        if options.tokens_per_parameter and options.law:
            both = "tokens_per_parameter and law"
            self._problem("law", "one of the two", both, "Each alone decides the best size.")
        if options.tokens_per_parameter:
            ratio = self._number("tokens_per_parameter", "a number above 0")
            if not ratio:
                return None
            return Law.of_ratio(ratio, f"{ratio:g} tokens a parameter, as stated")
        return self._fitted() if options.law else None

    def _fitted(self) -> Law | None:
        """Return the law of the asked method, or of the only one, in a fit's JSON."""
        path, asked = self._options.law, self._options.training_method
        try:
            fits: dict[str, Any] = json.loads(read_small(Path(path).expanduser()))["fits"]
            fit = fits[asked] if asked else next(iter(fits.values()))
            law = fit["parameters"]
            found = Law(float(law["scale"]), float(law["exponent"]), f"the fit in {path}")
            if found.scale > 0 and 0 < found.exponent < 1:
                return found
            raise ValueError(f"N = {found.scale:g} C^{found.exponent:g}")
        except (OSError, ValueError, KeyError, TypeError, StopIteration, AttributeError) as error:
            got = f"{path}: {type(error).__name__}: {first_line(error)}"
            self._problem("law", "a fit that `plan --fit RUNS --json` printed", got)
            return None

    def _check_combination(self, request: PlanRequest) -> None:
        """Collect what is wrong between options."""
        options = self._options
        budgets = [name for name in ("flops", "tokens", "data") if vars(options)[name] is not None]
        ways = [name for name in ("grid", "fit") if vars(options)[name] is not None]
        if len(ways) > 1:
            self._problem("fit", "either grid or fit", "both", "A grid is trained before its fit.")
        if ways:
            taken = [*budgets, *(name for name in ("model", "model_config") if vars(options)[name])]
            for name in taken:
                self._problem(name, f"no {name} with {ways[0]}", quoted(vars(options)[name]))
        elif len(budgets) != 1:
            got = " and ".join(budgets) or "none of them"
            self._problem("flops", "one of flops, tokens and data", got, "See main.py plan --help.")
        if options.model and options.model_config:
            self._problem("model", "either model or model_config", "both")
        if options.grid is not None and not request.sizes:
            self._problem("sizes", "sizes for the grid: 34,75,170", quoted(options.sizes or ""))
        if options.sizes is not None and options.grid is None:
            self._problem("sizes", "grid as well", "no grid")
        if options.grid is not None and request.out is None:
            self._problem("out", "a folder for the grid's jobs", "nothing")
        if options.png is not None and options.fit is None:
            self._problem("png", "fit as well", "no fit", "A picture shows a fit.")
        self._check_jobs(request)
        for name in ("mfu", "price_per_hour"):
            if vars(options)[name] is not None and not request.gpus:
                self._problem(name, "gpu as well", "no gpu", f"Name one of {', '.join(GPUS)}.")
        if request.rows < request.machines:
            got = f"{request.rows} rows on {request.machines} machines"
            self._problem("batch_size", "a row for each machine", got)

    def _check_jobs(self, request: PlanRequest) -> None:
        """Collect why jobs cannot be written."""
        if request.out is None or request.fit:
            return
        if not request.dataset_name:
            fix = "Name what `train` reads; a prepared folder in data counts too."
            self._problem("dataset_name", "the data of the job", "nothing", fix)
        if request.rows % request.devices:
            got = f"{request.rows} rows on {request.devices} devices"
            self._problem("batch_size", "as many rows on each device", got)

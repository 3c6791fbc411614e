"""What is recorded: analyses of the runs, and charts of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.identity.runs import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from benchmarks.identity.hashes import Record

CHARTS = ("loss", "accuracy", "trust-ratio", "lnr", "grad-norm", "rates", "explosions", "warmup", "sharpness",
          "density", "blocks", "gap", "comparison", "learning-rates", "landscape", "landscape-map")  # fmt: skip


def analyses(record: Record) -> None:
    """Every analysis in every form, of single runs and of all of them."""
    single = ("clf-lars-none", "clf-lars-lars-warm", "clf-tvlars-none", "clf-lamb-cosine", "clf-sgd-none",
              "clf-adam-lars-warm", "clf-rmsprop-none", "bt-tvlars-none", "bt-sgd-lars-warm", "variant-lars-excluded",
              "variant-lars-clip", "variant-tvlars-clip", "variant-lamb-clip", "variant-lamb-adam", "variant-norms",
              "variant-none", "variant-diverging", "killed-tvlars", "resnet")  # fmt: skip
    for run in single:
        for command in ("warmup", "minimizer", "compare", "replay"):
            for form in ("json", "csv", "text"):
                flags = [] if form == "text" else [f"--{form}"]
                record.call(f"{command}/{run}/{form}", command, run, *flags, form=form)
        record.call(f"show/{run}", "show", run)
        record.call(f"show/{run}/json", "show", run, "--json", form="json")
        record.call(f"check/{run}/json", "check", run, "--json", form="json")
    everything = sorted(p.name for p in record.folder.iterdir() if (p / "run.json").is_file())
    classified = [name for name in everything if name.startswith("clf-")]
    for command in ("warmup", "minimizer", "compare"):
        record.call(f"{command}/all/json", command, *classified, "--json", form="json")
        record.call(f"{command}/all/text", command, *classified)
    record.call("warmup/pair", "warmup", "clf-lars-cosine", "pair-lars", "--json", form="json")
    record.call("compare/fields", "compare", *everything, "--rows", "optimizer,data", "--columns", "schedule,model",
                "--metric", "test_loss", "--json", form="json")  # fmt: skip
    record.call("runs", "runs", ".", "--json", form="json")
    record.call("warmup/phase", "warmup", "bt-lars-none", "--phase", "linear", "--json", form="json")
    replays: dict[str, list[object]] = {
        "denominator": ["clf-lars-none", "--denominator", "grad"],
        "tvlars": ["clf-lars-none", "--opt", "tvlars", "--lmbda", 0.1],
        "lars": ["clf-tvlars-none", "--opt", "lars", "--eta", 0.01],
        "sgd": ["clf-sgd-none", "--trust-clip"],
        "lamb": ["clf-lamb-none", "--trust-clip", "--wd", 0.1],
        "lamb-adam": ["clf-lamb-none", "--adam"],
        "not-lamb": ["clf-lars-none", "--opt", "lamb"],
        "no-effect": ["clf-lars-none", "--lmbda", 1],
        "schedule": ["clf-lars-none", "--schedule", "lars-warm", "--warmup-epochs", 1, "--lr", 2],
        "excluded": ["variant-lars-excluded", "--lr", 3, "--schedule", "cosine"],
        "bt": ["bt-lars-none", "--phase", "linear", "--exclusion", "undecayed"],
    }
    for name, words in replays.items():
        record.call(f"replay/with-{name}", "replay", *words, "--json", form="json")


def charts(record: Record) -> None:
    """Every kind of chart as its specification, and the report."""
    one = ("clf-lars-none", "clf-tvlars-none", "clf-lamb-cosine", "clf-adam-none", "variant-val", "variant-diverging")
    several = [f"clf-{optimizer}-{schedule}" for optimizer in OPTIMIZERS for schedule in SCHEDULES]
    for kind in CHARTS:
        for run in one:
            _chart(record, f"chart/{kind}/{run}", kind, run)
        _chart(record, f"chart/{kind}/all", kind, *several)
    for kind in ("warmup", "learning-rates", "loss"):
        _chart(record, f"chart/{kind}/pair", kind, "clf-lars-cosine", "pair-lars")
    record.call("chart/list", "chart", "--list", "clf-lars-none", "variant-none")
    record.call("report", "report", "clf-lars-none", "clf-lars-lars-warm", "clf-tvlars-none", "-o", "report.html")
    page = (record.folder / "report.html").read_text()
    record.add_text("report/page", page)


def _chart(record: Record, name: str, *words: object) -> None:
    path = record.folder / "chart.json"
    path.unlink(missing_ok=True)
    record.call(name, "chart", *words, "-o", path.name)
    if path.exists():
        record.add_text(f"{name}/spec", path.read_text())

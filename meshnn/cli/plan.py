"""`meshnn plan`: who runs what, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnn.cli.deaths import told
from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.client import need
from meshnn.errors import UsageError

deadline_option = click.option(
    "--deadline", type=click.FloatRange(0.001, 3600), default=60.0, show_default=True, help="Seconds."
)


@click.group("plan", short_help="Show who runs what.")
def command() -> None:
    """The plans of the mesh."""


@command.command("show", short_help="Show the active plans, or one in a file.")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@state_dir_option
def show(file: Path | None, as_json: bool, state_dir: Path | None) -> None:
    """Show the active plans: stages, memory, which deaths are covered. With FILE, the plan in it; no node is asked."""
    if file is not None:
        _show_file(file, as_json=as_json)
        return
    reply = need(state_folder(state_dir)).request("GET", "/api/v1/plans")
    if as_json:
        click.echo(reply.line.decode())
        return
    plans: list[dict[str, Any]] = reply.json()
    if not plans:
        click.echo("no plan is active")
    for plan in plans:
        pinned = ", pinned" if plan["pinned"] else ""
        click.echo(
            f"{plan['model']} {plan['epoch']} (window {plan['window']}, {plan['share']} for each origin{pinned})"
        )
        if plan["pinned"] and plan["waits_for"]:
            missing = ", ".join(device[:12] for device in plan["waits_for"])
            click.echo(f"  waits for {missing}; `meshnn plan reset {plan['model']}` gives the model to the planner")
        for stage in plan["stages"]:
            used = plan["memory_bytes"].get(stage["device_id"], 0) / 1e6
            split = "" if stage["split"] == "none" else f", {stage['split']} part {stage['part']}"
            first, last = stage["operators"]
            click.echo(f"  {stage['device']}: operators {first}-{last}{split}, {used:.1f} MB on the device")
        names = {stage["device_id"]: stage["device"] for stage in plan["stages"]}
        for row in plan["deaths"]:
            click.echo(f"  the death of {told(row, names)}")


def _show_file(file: Path, *, as_json: bool) -> None:
    """The plan in a file, for a person or as bare JSON."""
    import msgspec

    from meshnn.cli import written

    _, plan = written.read(file)
    for line in [msgspec.json.encode(plan).decode()] if as_json else written.described(plan):
        click.echo(line)


@command.command("explain", short_help="Say why this plan, and what others would cost.")
@click.argument("model")
@json_option
@state_dir_option
def explain(model: str, as_json: bool, state_dir: Path | None) -> None:
    """Say what the planner weighed for MODEL: the plan that serves, one device, pipelines, split stages."""
    node = need(state_folder(state_dir))
    reply = node.request("GET", node.model_path(model, "/plan"), timeout_s=60)
    if as_json:
        click.echo(reply.line.decode())
        return
    for row in reply.json():
        mark = "*" if row["chosen"] else " "
        if row["latency_ms"] is None:
            click.echo(f"{mark} {row['title']}: {row['reason']}")
        else:
            air = f"{row['air_bytes'] / 1e6:.2f} MB on the air"
            cost = f"{row['latency_ms']:.1f} ms, {row['throughput_per_s']:.1f} in a second"
            click.echo(f"{mark} {row['title']}: {cost}, {air}")


@command.command("check", short_help="Run a plan, or every split of a model, here and compare.")
@click.argument("plan", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "file", required=True, type=click.Path(path_type=Path), help="The model's TFLite file.")
@click.option("--all-splits", is_flag=True, help="Try every split at every operator, and on fused runs.")
@click.option("--parts", type=click.IntRange(2, 64), default=2, show_default=True, help="Parts of each split.")
@click.option("--shares", help="The parts' sizes in proportion, such as 2,1,1 (default: equal work).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random input.")
@json_option
def check(
    plan: Path | None, file: Path, *, all_splits: bool, parts: int, shares: str | None, seed: int, as_json: bool
) -> None:
    """Run PLAN (JSON), or with --all-splits every split of a model, on this machine and compare with the whole model.

    Exits 0 only if nothing crashed and every split that ran was within its class: equal bytes, or for float partial
    sums within 1e-5 of the tensor's largest magnitude.
    """
    if (plan is None) != all_splits:
        raise UsageError("name a plan file, or give --all-splits")
    from meshnn.cli import check as checking

    if plan is not None:
        good = checking.check_plan(plan, file, seed=seed, as_json=as_json)
    else:
        good = checking.check_all_splits(file, _speeds(shares, parts), seed=seed, as_json=as_json)
    if not good:
        raise click.exceptions.Exit(1)


@command.command("apply", short_help="Make the mesh run exactly this plan.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="The model's name in the mesh (default: what FILE names, else the only one).")
@deadline_option
@state_dir_option
def apply(file: Path, model: str | None, deadline: float, state_dir: Path | None) -> None:
    """Make the mesh run exactly the plan in FILE (JSON; see `meshnn plan show --json`) until `meshnn plan reset`.

    Devices are named by their name or id. Refused, with the reason, where it does not fit; then nothing changes.
    """
    from meshnn.cli import written

    node = need(state_folder(state_dir))
    data, _ = written.read(file, model or "")
    model = model or written.model_for(data, node)
    query = {"deadline": deadline}
    node.request("PUT", node.model_path(model, "/plan"), data, query, timeout_s=deadline + 5)
    click.echo(f"{model} runs the plan of {file.name}; `meshnn plan reset {model}` gives it back to the planner")


@command.command("reset", short_help="Give a model back to the planner.")
@click.argument("model")
@deadline_option
@state_dir_option
def reset(model: str, deadline: float, state_dir: Path | None) -> None:
    """Give MODEL back to the planner; returns once the planner's own plan serves it."""
    node = need(state_folder(state_dir))
    node.request("DELETE", node.model_path(model, "/plan"), query={"deadline": deadline}, timeout_s=deadline + 5)
    click.echo(f"{model} is planned again")


def _speeds(shares: str | None, parts: int) -> tuple[float, ...]:
    """The parts' sizes in proportion; all alike where none are given."""
    if shares is None:
        return (1.0,) * parts
    try:
        found = tuple(float(share) for share in shares.split(","))
    except ValueError:
        raise UsageError(f"--shares takes numbers such as 2,1,1, not {shares!r}") from None
    if len(found) < 2 or not all(0 < share < float("inf") for share in found):
        raise UsageError("--shares takes two or more numbers above zero")
    return found

"""`epilogue tune` on the kernels themselves: what it runs, checks, times and saves."""

import math

import pytest
import torch

import checks
import epilogue

pytest.importorskip("tqdm")
from epilogue.benchmarks.machine import tune
from epilogue.benchmarks.timing import Timing
from epilogue.explanation import problems
from epilogue.lookup import resolve_call
from epilogue.triton import dact, linear
from epilogue.triton.plan import chips, tuned
from epilogue.triton.plan.configs import TABLE, Config
from epilogue.triton.plan.problem import DACT, DROPPED, GLU, LINEAR, Problem

PROBLEMS = [
    Problem(LINEAR, 64, 48, 32, torch.bfloat16, "tf32", False, "relu", gated=False, keeps=False),
    Problem(LINEAR, 64, 48, 32, torch.float16, "tf32", False, "gelu", gated=False, keeps=True),
    Problem(GLU, 64, 48, 32, torch.float16, "tf32", False, "maxout", gated=True, keeps=True),
    Problem(DACT, 64, 48, 32, torch.float32, "ieee", False, "relu", gated=False, keeps=False),
    Problem(DROPPED, 64, 48, 32, torch.float16, "tf32", False, "silu", gated=True, keeps=True),
]


@pytest.fixture
def chip(device):
    return chips.machine(torch.empty(0, device=device))


@pytest.fixture
def unfused_wins(monkeypatch):
    """The calls are run, each once, but timed by decree."""

    def measure(calls, device):
        for call in calls.values():
            call()
        return {choice: Timing(1.0, 2.0 if choice == "unfused" else 3.0, 4.0) for choice in calls}

    monkeypatch.setattr(tune, "measure", measure)


@pytest.mark.usefixtures("unfused_wins")
def test_the_fastest_is_saved(chip, device, tmp_path):
    path = tmp_path / "tuned.json"
    lines = tune.run(PROBLEMS, chip, path, device, seconds=math.inf)
    assert tuned.read(path, tuned.head(chip)) == dict.fromkeys(PROBLEMS, ("unfused", 2.0))
    assert len(lines) == len(PROBLEMS)
    assert all("cuBLAS and a pointwise kernel 2.0 us" in line for line in lines)
    more = PROBLEMS[0]._replace(m=128)
    tune.run([more], chip, path, device, seconds=math.inf)
    assert set(tuned.read(path, tuned.head(chip))) == {*PROBLEMS, more}  # what was known stays


@pytest.mark.usefixtures("unfused_wins")
def test_what_was_found_counts_at_once(chip, device, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "user_path", lambda chip: tmp_path / "tuned.json")
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
    tuned.load.cache_clear()
    assert tuned.load(chip) == {}
    tune.choose(PROBLEMS[0], chip)
    tune.run(PROBLEMS[:1], chip, tmp_path / "tuned.json", device, seconds=math.inf)
    assert tuned.load(chip) == {PROBLEMS[0]: ("unfused", 2.0)}
    assert tune.choose.cache_info().currsize == 0
    tuned.load.cache_clear()


@pytest.mark.usefixtures("unfused_wins")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.family.name}-{problem.activation}")
def test_every_way_is_tried(problem, chip, device):
    timings = tune.fastest(problem, chip, device)
    tiles = {choice for choice in timings if isinstance(choice, Config)}
    assert tiles > set(TABLE[problem.family, problem.tma, problem.dtype.itemsize])
    assert {config.GROUP_M for config in tiles} == {1, 4, 8, 16}
    assert "unfused" in timings
    # A saved z, a second weight or backward torch's own epilogue has not; on a GPU its relu may lose NaN.
    assert "library" not in timings or problem == PROBLEMS[0]
    assert device != "cpu" or problem != PROBLEMS[0] or "library" in timings


@pytest.mark.usefixtures("unfused_wins")
def test_a_library_that_loses_nan_is_not_taken(chip, device, monkeypatch):
    right = tune.linear_fwd

    def loses(layer, applied, keep, choice):
        y, z = right(layer, applied, keep, choice)
        return (y.nan_to_num() if choice == "library" and len(y) > 1 else y), z  # one row is no product to cuBLASLt

    monkeypatch.setattr(tune, "linear_fwd", loses)
    assert "library" not in tune.fastest(PROBLEMS[0], chip, device)


def test_real_times(chip, device, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "GROUPS", ())
    monkeypatch.setattr("epilogue.benchmarks.timing.ROUNDS", (2, 2))
    path = tmp_path / "tuned.json"
    tune.run(PROBLEMS[:1], chip, path, device, seconds=math.inf)
    ((_, microseconds),) = tuned.read(path, tuned.head(chip)).values()
    assert microseconds > 0


def test_time_is_up(chip, device, tmp_path):
    lines = tune.run(PROBLEMS, chip, tmp_path / "tuned.json", device, seconds=-1)
    assert all("not measured" in line for line in lines)
    assert not (tmp_path / "tuned.json").exists()


@pytest.mark.parametrize("problem", PROBLEMS[1:3] + PROBLEMS[4:], ids=lambda problem: problem.family.name)
def test_what_is_wrong_is_not_timed(problem, chip, device, monkeypatch):
    for name in ("linear_fwd", "linear_dact"):
        right = getattr(tune, name)

        def wrong(*args, right=right):
            first, *rest = right(*args)
            first[-1] += 0.1
            return first, *rest

        monkeypatch.setattr(tune, name, wrong)
    with pytest.raises(SystemExit, match="is wrong, error"):
        tune.fastest(problem, chip, device)


@pytest.mark.parametrize("sizes", [(32, 48), (19, 29)], ids=["descriptor", "pointer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["inference", "training", "dropout"])
@pytest.mark.parametrize("activation", ["gelu", "leaky_relu", "maxout"])
@pytest.mark.parametrize("op", checks.OPS)
def test_calls_ask_for_what_is_measured(op, activation, mode, dtype, sizes, chip, rng, device, monkeypatch):
    """The problems that `tune` and `explain` go by are those of the calls themselves."""
    name, gated = op.removesuffix(" packed"), "glu" in op or "gated" in op
    dropout, training = mode == "dropout", mode != "inference"
    if (activation == "maxout" and not gated) or (dropout and "mlp" not in op):
        return
    asked = []
    for module in (linear, dact):
        chosen = module.choose
        monkeypatch.setattr(
            module, "choose", lambda problem, *rest, chosen=chosen: asked.append(problem) or chosen(problem, *rest)
        )
    (k, n), m = sizes, 24
    args = checks.each(
        lambda a: torch.as_tensor(a).to(device, dtype).requires_grad_(training),
        checks.arguments(op, rng, (m,), (k, n, k)),
    )
    options = {"dropout_p": 0.5, "training": True} if dropout else {}
    y = getattr(epilogue, name)(**args, activation=activation, **options)
    if training:
        y.backward(torch.randn_like(y))
    act, values = resolve_call(name, activation, {}, gated)
    assert asked == [*problems(name, m, k, n, act, values, dtype, chip, training, dropout).values()]


@pytest.mark.usefixtures("unfused_wins")
def test_what_does_not_run_is_left_out(chip, device, monkeypatch, capsys):
    right = tune.linear_fwd

    def short_of_memory(layer, applied, keep, choice):
        if isinstance(choice, Config):
            raise RuntimeError("out of resource: shared memory")
        return right(layer, applied, keep, choice)

    monkeypatch.setattr(tune, "linear_fwd", short_of_memory)
    assert set(tune.fastest(PROBLEMS[1], chip, device)) == {"unfused"}
    assert "does not run: out of resource: shared memory" in capsys.readouterr().err

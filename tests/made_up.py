"""Result files as `epilogue bench`, `training` and `host-cost` write them, made up for tests: no number in them was measured."""

import json

GPU = "NVIDIA Test 100"
HEAD = {
    "date": "2001-01-01T00:00:00+00:00",
    "cpu": "a test's",
    "gpu": GPU,
    "driver": "1.2",
    "versions": {"torch": "9.9", "triton": "8.8"},
    "commit": "0123456789abcdef",
}


def provider(median, spread=1.0, host=10.0, peak=None):
    return {"us": [median - spread, median, median + spread], "host_us": host, "peak_bytes": peak}


def row(op="linear", mode="inference", tokens=8192, d=4096, hidden=8192, **others):
    """One row; others: its further fields, among them providers."""
    row = {
        "op": op, "mode": mode, "model": "Testnet", "tokens": tokens, "d": d, "hidden": hidden, "activation": "silu",
        "dtype": "bfloat16", "precision": "ieee", "bias": False, "flops": 2 * 10**9, "bytes": 10**8, "providers": {},
    }  # fmt: skip
    return row | others


def bench(*rows, **others):
    """A file of `epilogue bench`."""
    roof = {"product_tflops": 800.0, "copy_gbps": 4000.0}
    return {**HEAD, "suite": "smoke", "roof": roof, "rows": list(rows), "not_run": [], **others}


def training_row(layers, compiled, median, peak=None, model="llama"):
    return {
        "model": model, "layers": layers, "compiled": compiled, "tokens": 1000, "parameters": 2_000_000,
        "us": [median - 1000, median, median + 1000], "peak_bytes": peak, "loss": [5.0, 4.0],
    }  # fmt: skip


def save(directory, **documents):
    """Each as a file; "__" in a name stands for "-"."""
    for name, document in documents.items():
        (directory / f"{name.replace('__', '-')}.json").write_text(json.dumps(document))
    return directory

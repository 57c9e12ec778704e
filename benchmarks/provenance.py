"""The provenance of a result: the machine, the versions of the packages, the commit."""

import datetime
import importlib
import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path


def machine() -> dict[str, object]:
    """The machine, packages and commit of a measurement, for a later reader."""
    import torch  # here, since `epilogue doctor` tells the versions where torch does not import

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "date": now,
        "cpu": processor(),
        "gpu": gpu,
        "driver": driver(),
        "versions": versions(),
        "commit": commit(),
    }


def processor() -> str:
    """The CPU's model name; Python's own answer is often empty on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Package -> version, "not installed", or why it does not import."""
    packages = ("epilogue", "numpy", "torch", "triton", "cupy")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        return importlib.import_module(name).__version__
    except Exception as error:  # a package may fail in any way where its driver or libraries are missing
        return f"does not import: {error}"


def driver() -> str:
    """The version of NVIDIA's driver, or "unknown"."""
    return _line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str:
    """The commit of the running code, `-dirty` if it has changed since, or "unknown"; for a wheel, what `make wheel` wrote into it."""
    here = Path(__file__).resolve()
    built = here.with_name("commit.txt")
    git = ("git", "-C", str(here.parent))
    tracked = _line(*git, "ls-files", here.name)  # nothing where the package is installed inside another repository
    if tracked != here.name:
        return built.read_text().strip() if built.is_file() else "unknown"
    return _line(*git, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


def _line(program: str, *arguments: str) -> str:
    """The first line that the program prints, "unknown" where there is none."""
    tool = shutil.which(program)
    if tool is None:
        return "unknown"
    printed = subprocess.run([tool, *arguments], capture_output=True, text=True).stdout.splitlines()
    return printed[0] if printed else "unknown"

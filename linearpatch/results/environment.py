"""What a run runs on: packages, hardware and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from linearpatch.results.sections import EnvironmentSection

PACKAGES = (
    "linearpatch",
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "wandb",
    "safetensors",
)


def environment() -> EnvironmentSection:
    """Packages, hardware and the commit of the code."""
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return EnvironmentSection(packages, hardware, _git_commit())


def _git_commit() -> str | None:
    """Commit of the checkout this code runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

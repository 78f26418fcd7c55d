"""The build hook that puts the shipped model and the catalogue into a wheel.

In the repository they lie in `models/`, beside the package; an installed meshnn finds them in
`meshnn/models/`. An editable install reads the repository's own folder and gets no copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ("default.tflite", "catalogue.toml")


class ModelsHook(BuildHookInterface[Any]):
    """Adds what `models/` ships to every wheel but an editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Map each shipped file of `models/` to its place in the package."""
        if version == "editable":
            return
        models = Path(self.root) / "models"
        for name in SHIPPED:
            if (models / name).exists():
                build_data["force_include"][str(models / name)] = f"meshnn/models/{name}"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_artefact import fill, open_draft

from sae_pipeline.store import Artefact


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[str], Artefact]:
    def make(name: str = "artefact") -> Artefact:
        with open_draft(tmp_path / name) as draft:
            fill(draft)
            return draft.publish({"rows": 90, "nmse": 0.125})

    return make

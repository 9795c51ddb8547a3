"""The subject model: loaded when first asked for, one per process, freed at the end of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PrivateAttr

if TYPE_CHECKING:
    from resources.workspace import Workspace
    from sae_pipeline.subjects import Subject


class SubjectResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Loads the study's subject lazily and keeps it for the run."""

    _loaded: Any = PrivateAttr(default=None)

    def get(self, workspace: Workspace) -> Subject:
        """The subject on its device; the second call returns the same one."""
        if self._loaded is None:
            from sae_pipeline.subjects import load_subject

            self._loaded = load_subject(
                workspace.study.subject, root=workspace.root, device=workspace.study.subject.device
            )
        loaded: Subject = self._loaded
        return loaded

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Free the model and its device memory."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

import pytest
import synthetic_study

from sae_pipeline.report import render


@pytest.fixture(scope="session")
def page() -> str:
    """The whole synthetic study, rendered once."""
    return render(synthetic_study.report_inputs())

import pytest

from fastseg_losses.training import html_page


@pytest.fixture(autouse=True)
def charts_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No charts in report.html, which take longer to draw than an epoch here to train.

    Tests of the page itself have a fixture of this name that leaves them in.
    """
    monkeypatch.setattr(html_page, "draw_charts", lambda *args, **options: [])

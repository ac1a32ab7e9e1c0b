"""The demo, whole and as a user runs it: what it must show, whoever wins."""

import json
import subprocess
import sys


def test_every_method_learns_and_the_report_is_drawn(tmp_path):
    import matplotlib.image  # here: where only the tests of a device run, it need not be installed

    run = subprocess.run(
        [sys.executable, "examples/demo.py", "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["standard", "FreeLB", "InfoBERT"]
    for name, result in results.items():
        assert result["clean"] > 0.6, name
        assert result["adversarial"] > 0.6, name
        assert result["upper"] > 0
        assert result["seconds_per_step"] > 0
        assert f"{100 * result['adversarial']:.1f}" in run.stdout
    # Only InfoBERT is asked to let its features keep less, and it must show.
    assert results["InfoBERT"]["upper"] < 0.9 * results["FreeLB"]["upper"]
    picture = matplotlib.image.imread(tmp_path / "report.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 900
    assert picture[..., :3].std() > 0.05  # not a blank sheet

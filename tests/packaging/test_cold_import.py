"""`import infobert_fast` is for people who only swap a loss: it needs torch, costs little and touches no device."""

import json

HEAVY = ("triton", "transformers", "datasets", "accelerate", "deepspeed", "matplotlib", "rich", "yaml", "safetensors")


def test_imports_without_anything_but_torch(wheel_environment):
    """None in `sys.modules` is how a missing package looks, to `import` and to `importlib.util.find_spec`."""
    code = (
        "import sys, torch\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "import infobert_fast\n"
        "print(all(sys.modules[name] is None for name in " + repr(HEAVY) + "))"
    )
    assert wheel_environment.run(code) == "True"


def test_import_is_quick_and_quiet(wheel_environment):
    code = (
        "import json, sys, time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.perf_counter()\n"
        "import infobert_fast\n"
        "seconds = time.perf_counter() - start\n"
        f"brought = sorted(set({HEAVY!r}) & (set(sys.modules) - before))\n"
        "print(json.dumps({'seconds': seconds, 'brought': brought, 'cuda': torch.cuda.is_initialized()}))"
    )
    report = json.loads(wheel_environment.run(code))
    assert report["seconds"] < 2.0
    assert report["brought"] == []
    assert not report["cuda"]

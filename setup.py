"""Packaging metadata; the tools are configured in ``pyproject.toml``.

``kernels/`` and ``benchmarks/`` stand at the top of the repository and install as ``infobert_fast.kernels`` and
``infobert_fast.benchmarks``.
"""

from pathlib import Path

from setuptools import find_packages, setup

# torch's CUDA builds pin their own triton, so only a floor is asked for here: the release that torch 2.11 brings.
CORE = ["torch>=2.11", "triton>=3.6; platform_system == 'Linux'", "numpy>=2.0"]

# Upper bounds where we override private methods: the next minor release is untested.
TRAIN = [
    "transformers>=5.17,<5.25",
    "accelerate>=1.15,<1.16",
    "datasets>=4.0",
    "huggingface_hub>=1.0",
    "deepspeed>=0.19.8",
    "safetensors>=0.5",
    "psutil>=5.9",
    "pyyaml>=6.0",
    "regex>=2024.4",
    "rich>=13.0",
    "scipy>=1.13",
    "tokenizers>=0.20",
    "tqdm>=4.66",
]

PLOT = ["matplotlib>=3.8"]

# Only for parts of speech in `infobert attack --keep_part_of_speech`; its tagger is downloaded by its own command.
ATTACK = ["nltk>=3.9"]

BENCH = ["pytest>=8.0", "pytest-benchmark>=5.0"]

PEFT = ["peft>=0.21"]  # adapters, for whoever wraps a model in them: nothing here imports it

DEV = [
    "build>=1.2",
    "hypothesis>=6.100",
    "mypy>=2.0",
    "optuna>=4.0",
    "packaging>=24.0",
    "pytest-xdist>=3.6",
    "ruff>=0.15",
    "setuptools>=77",
    "tensorboard>=2.17",
    "types-PyYAML>=6.0",
    "types-tqdm>=4.66",
]

setup(
    name="infobert-fast",
    version="0.1.0",
    description="Fine-tune language models with InfoBERT's mutual-information regularisers, fast and exactly",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="infobert-fast maintainers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["InfoBERT", "mutual information", "InfoNCE", "CLUB", "FreeLB", "robustness", "Triton", "DeepSpeed"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["infobert_fast", "infobert_fast.*"]),
        "infobert_fast.kernels",
        "infobert_fast.benchmarks",
        *(f"infobert_fast.benchmarks.{folder}" for folder in ("harness", "suites", "report", "model")),
    ],
    package_dir={
        "infobert_fast": "infobert_fast",
        "infobert_fast.kernels": "kernels",
        "infobert_fast.benchmarks": "benchmarks",
    },
    package_data={"infobert_fast": ["py.typed", "configs/**"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "plot": PLOT,
        "attack": ATTACK,
        "peft": PEFT,
        "bench": [*TRAIN, *BENCH],
        "dev": [*TRAIN, *PLOT, *BENCH, *PEFT, *DEV],
    },
    entry_points={"console_scripts": ["infobert=infobert_fast.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

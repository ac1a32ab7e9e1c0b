"""Packaging. ``kernels/`` stands at the top of the repository and installs as ``infobert_fast.kernels``."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "transformers>=5.17",
    "accelerate>=1.15",
    "datasets>=4.0",
    "deepspeed>=0.19.8",
    "safetensors>=0.5",
    "pyyaml>=6.0",
    "rich>=13.0",
]

DEV = [
    "hypothesis>=6.100",
    "matplotlib>=3.8",
    "mypy>=2.0",
    "pytest>=8.0",
    "pytest-benchmark>=5.0",
    "ruff>=0.15",
    "build>=1.2",
    "tensorboard>=2.17",
    "types-PyYAML>=6.0",
]

setup(
    name="infobert-fast",
    version="0.1.0",
    description="Fine-tune language models with InfoBERT's mutual-information regularisers, fast and exactly",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["infobert_fast", "infobert_fast.*"]), "infobert_fast.kernels"],
    package_dir={"infobert_fast": "infobert_fast", "infobert_fast.kernels": "kernels"},
    package_data={"infobert_fast": ["py.typed", "configs/*.yaml", "configs/deepspeed/*.json"]},
    install_requires=["torch>=2.11", "triton>=3.6; platform_system == 'Linux' and platform_machine == 'x86_64'"],
    extras_require={"train": TRAIN, "plot": ["matplotlib>=3.8"], "dev": [*TRAIN, *DEV]},
    entry_points={"console_scripts": ["infobert=infobert_fast.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

"""Packaging of Zoetrope: video representation learning in JAX."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

# Version floors are the oldest versions the suite has passed with; there are no upper pins.
_REQUIRED = [
    "absl-py>=2.1",
    "av>=14",
    "dm-tree>=0.1.8",
    "flax>=0.12",
    "google-crc32c>=1.5",
    "jax>=0.10",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "opencv-contrib-python-headless>=4.10",  # TV-L1 flow is among its extra modules
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11",
    "pillow>=10",
    "protobuf>=5",
    "safetensors>=0.4",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "tensorboard>=2.18",
    "tensorflow-cpu>=2.20; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "tensorflow>=2.20; platform_machine != 'x86_64' or sys_platform != 'linux'",
    "tensorflow-datasets>=4.9.7",
    "tokenizers>=0.20",
    "tqdm>=4.66",
]

setuptools.setup(
    name="zoetrope",
    version="0.1.0",
    description="Video representation learning in JAX, from a folder of mp4 files to a model.",
    long_description=(_HERE / "README.md").read_text() if (_HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=setuptools.find_namespace_packages(
        include=["brave*", "common*", "configs*", "frozen*", "mil_nce*"]
    ),
    install_requires=_REQUIRED,
    extras_require={
        "beam": ["apache-beam>=2.60"],
        "cuda": ["jax[cuda13]>=0.10"],
        "dev": [
            "apache-beam>=2.60",
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
        ],
        "tpu": ["jax[tpu]>=0.10"],
    },
)

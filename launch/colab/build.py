"""Makes the notebooks out of the percent files beside it: python launch/colab/build.py

NAME.py is the source of NAME.ipynb. Each notebook begins with its badge, and its cell tagged
`setup` is `setup_cell.py`. Outputs are never stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

# Where genjax is published, such as "https://github.com/OWNER/genjax". Badges and the setup cell
# take it from here. Change it, run this file, and commit what it writes.
REPOSITORY = ""
BRANCH = "main"

FOLDER = Path(__file__).parent
NAMES = ("quickstart", "your_pictures", "language", "new_family", "latents")
SETUP = FOLDER / "setup_cell.py"
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def badge(name: str, repository: str) -> str:
    """Markdown of the badge that opens a notebook in Colab."""
    if not repository:
        return (
            "*This copy of genjax does not know its own address, so there is no badge to open it "
            "in Colab. `REPOSITORY` in `launch/colab/build.py` is the place for it.*"
        )
    path = repository.removeprefix("https://").removeprefix("github.com/")
    url = f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/launch/colab/{name}.ipynb"
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({url})"


def setup(repository: str) -> str:
    """The code of the first cell of every notebook."""
    return SETUP.read_text().strip().replace("{repository}", repository)


def notebook(name: str, repository: str = REPOSITORY) -> str:
    """The JSON of a notebook.

    Args:
      name: one of `NAMES`.
      repository: the address that the badge and the setup cell have.
    """
    made = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    made.cells.insert(0, nbformat.v4.new_markdown_cell(badge(name, repository)))
    for number, cell in enumerate(made.cells):
        cell.id = f"{name}-{number}"
        if "setup" in cell.metadata.get("tags", ()):
            cell.source = setup(repository)
            cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    made.metadata = nbformat.from_dict(METADATA)
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def main() -> int:
    """Writes every notebook."""
    for name in NAMES:
        (FOLDER / f"{name}.ipynb").write_text(notebook(name))
        print(f"wrote {name}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())

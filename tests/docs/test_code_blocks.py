"""Every code block of the documentation is run: Python, commands and configurations, page by page.

What cannot run here as it stands has a stand-in in `STAND_INS`, with the reason; whatever has none is run as
it is written. `text` right after a block is what that block prints, and is compared; `…` in it is any text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, fenced, indented
from .running import PageRun, commands


@dataclass(frozen=True)
class StandIn:
    """Something that cannot run here as it stands.

    Args:
        found: a regular expression.
        becomes: what replaces it; {llama}, {corpus} and {root} are paths.
        why: the reason.
    """

    found: str
    becomes: str
    why: str

    def apply(self, text: str, **paths: str) -> str:
        """The text with what was found replaced."""
        return re.sub(self.found, self.becomes.format(**paths), text, flags=re.MULTILINE)


LLAMA = r"(?<!list --model )meta-llama/Meta-Llama-3-8B\b(?!-)"
SMALL = "what takes hours on a card takes seconds at this size"
STAND_INS = {
    "command": (
        StandIn(
            r"^make (?=\w)",
            "make --dry-run -C {root} ",
            "`make check` runs this test; dry, every rule is read",
        ),
        StandIn(
            r"plan +(?=sae_configs/llama)",
            "plan {root}/",
            "the configuration as it stands: a plan loads nothing",
        ),
        StandIn(
            r"check EleutherAI/\S+ --model \S+ --dtype bfloat16 --device cuda",
            "check checkpoints/icl-tiny-saes/L2.resid_post --model checkpoints/icl-tiny",
            "4 GB from the network; tests/saes reads the layout",
        ),
        StandIn(
            r"(?<=check )llama_scope_lxr_8x/\S+ --model \S+",
            "checkpoints/icl-tiny-saes/L2.resid_post --model checkpoints/icl-tiny-twin",
            "the network; these are another model's SAEs too, which is what --force is for",
        ),
        StandIn(r"--device cuda", "--device cpu", "tests need no card"),
        StandIn(LLAMA, "{llama}", "16 GB and a licence; a random Llama of 12 narrow blocks"),
        StandIn(
            r"^torchrun --standalone --no-python --nproc-per-node 2 (iclens track .*)",
            r"RANK=0 WORLD_SIZE=2 \1\nRANK=1 WORLD_SIZE=2 \1",
            "ranks of tracking meet on the disk alone; one after the other, no interpreter has to start",
        ),
        StandIn(r"n_prompts=64", "n_prompts=12", SMALL),
        StandIn(r"(?<=00_built_in_model.py)", " --contexts 8", SMALL),
        StandIn(r"(?<=01_task_formation.py)", " --prompts 4", SMALL),
        StandIn(r"reference train", "reference train --stage trunk --recipe {recipe}", "150 minutes"),
    ),
    "file": (
        StandIn(LLAMA, "{llama}", "as for commands"),
        StandIn(r"device: cuda", "device: cpu", "tests need no card"),
        StandIn(
            r"dataset: HuggingFaceFW/fineweb.*\n +subset: .*\n",
            "dataset: {corpus}\n",
            "tests need no network",
        ),
        StandIn(
            r"(?<=sites:\n    - L10.resid_post\n)(    - .*\n)+", "", "one SAE instead of fourteen; " + SMALL
        ),
        StandIn(r"\btokens: \d+(_000)+\b", "tokens: 2_000", SMALL),
        StandIn(r"context_tokens: 256", "context_tokens: 64", SMALL),
        StandIn(r"batch_tokens: 4096", "batch_tokens: 128", SMALL),
        StandIn(r"buffer_tokens: \d+_\d+", "buffer_tokens: 1_024", SMALL),
        StandIn(r"d_sae: (16384|32768|131072)", "d_sae: 96", SMALL),
        StandIn(r"\bk: 64", "k: 8", SMALL),
        StandIn(r"contexts: 256", "contexts: 8", SMALL),
        StandIn(r"n_prompts: 512", "n_prompts: 80", SMALL),
        StandIn(r"n_examples: 25", "n_examples: 16", SMALL),
        StandIn(r"arms: \[T, S, R, D.*\]", "arms: [T, S, R]", SMALL),
        StandIn(r'grid: .*"\], n_prompts: 8', "grid: {{tasks: [{grid}], n_prompts: 4", SMALL),
        StandIn(r"dose_latents: 6, n_controls: 200", "dose_latents: 1, n_controls: 4", SMALL),
        StandIn(r"n_prompts: 64", "n_prompts: 8", SMALL),
        StandIn(
            r"n_controls: 200, ch", "n_controls: 8, n_tested: 2, largest_set: 4, n_random_sets: 2, ch", SMALL
        ),
        StandIn(r"layers: \[10, .*\]", "layers: [10], probe_rows: 200, n_pairs: 4, n_controls: 4", SMALL),
        StandIn(r"pages_per_site: 60", "pages_per_site: 2", SMALL),
    ),
}
"""Where → what is replaced there: in commands and Python, or in the YAML that commands read."""
BLOCKS = {page: list(fenced(page, page.read_text(encoding="utf-8"))) for page in PAGES}
COMMANDS = ("iclens", "python", "make", "torchrun", "pip", "import", "from", "$", "git", "jupyter")


def rewritten(where: str, shared: Path) -> Callable[[str], str]:
    grid = '"{1..3}x+{0..1}", odd, even, "word:parity", "word:size", "letter:next"'
    paths = {
        "grid": grid,
        "llama": str(shared / "llama"),
        "corpus": str(shared / "text.jsonl"),
        "root": str(ROOT),
    }
    paths["recipe"] = str(shared / "recipe.yaml")

    def rewrite(text: str) -> str:
        for one in STAND_INS[where]:
            text = one.apply(text, **paths)
        return text

    return rewrite


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCKS[p]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_block_of_the_page_runs(page: Path, page_folder: Callable[..., Path], shared: Path) -> None:
    file = rewritten("file", shared)
    running = PageRun(page_folder(file), rewritten("command", shared), file)
    for block in BLOCKS[page]:
        running.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_in_an_indented_block(page: Path) -> None:
    lines = indented(page.read_text(encoding="utf-8"))
    assert not [f"{page.name}:{n}: {line}" for n, line in lines if line.split()[0] in COMMANDS]


def test_every_stand_in_stands_for_something() -> None:
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    run = [block.text for block in blocks if block.language == "python"]
    run += [line for block in blocks if block.language in ("sh", "console") for line in commands(block.text)]
    read = [block.text for block in blocks if block.language == "yaml"]
    read += [path.read_text(encoding="utf-8") for path in (ROOT / "sae_configs").glob("*.yaml")]
    for where, texts in (("command", run), ("file", read)):
        idle = [
            one.found for one in STAND_INS[where] if not any(re.search(one.found, t, re.M) for t in texts)
        ]
        assert not idle, f"nothing in the documentation needs the stand-in for {idle}"

"""``janus-jax assemble``: a Janus from published components, for stage 1 to start from."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Assemble:
    """Assemble a language model, a vision tower and a VQ tokenizer into a Janus to be trained.

    Both aligners, the table of image tokens and the image head are new, and the control tokens
    that the vocabulary lacks are added to it. Stage 1 trains what is new.

    janus-jax assemble runs/pretrained --llm deepseek-llm-1.3b --vision siglip --vq vq16.pt

    The published stage-1 presets start from runs/pretrained. For another directory, give
    `janus-jax train` --init llm=DIR vision=DIR vq=DIR; docs/assemble.md has the rest.

    Attributes:
        destination: Model directory to write.
        llm: Directory of a transformers LlamaForCausalLM, with its tokenizer.json.
        vision: Directory of a transformers SiglipVisionModel or SiglipModel.
        vq: The .pt file of LlamaGen's VQ-16, or the same as .safetensors.
        seed: Seed of everything that is new.
        dtype: Storage dtype; by default each component keeps its own.
        json: Print one JSON object.
    """

    destination: Annotated[Path, tyro.conf.Positional]
    llm: Path
    vision: Path
    vq: Path
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None
    json: bool = False


def run(args: Assemble) -> int:
    """Runs the command.

    Args:
        args: The parsed command line.

    Returns:
        The exit status.

    Raises:
        InputError: Components that are missing, damaged or do not go together; an unusable
            destination; a negative seed.
    """
    from janus_jax.errors import InputError

    if args.seed < 0:
        raise InputError(f"--seed {args.seed}", "a number from 0")
    from convert.assemble import assemble

    done = assemble(
        args.destination,
        llm=args.llm,
        vision=args.vision,
        vq=args.vq,
        seed=args.seed,
        dtype=args.dtype,
    )
    report = {
        "destination": str(args.destination),
        "architecture": done.config.name,
        "parameters": done.parameters,
        "added_tokens": done.added,
        "dropped": {kind: list(keys) for kind, keys in done.dropped.items()},
    }
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    print(f"{args.destination}: {sum(done.parameters.values()):,} parameters", file=sys.stderr)
    for child, count in done.parameters.items():
        print(f"  {child:12s} {count:15,}", file=sys.stderr)
    for kind, keys in done.dropped.items():
        if keys:
            print(f"  left behind from {kind}: {', '.join(keys)}", file=sys.stderr)
    if done.added:
        print(f"  added to the vocabulary: {', '.join(done.added)}", file=sys.stderr)
    return 0

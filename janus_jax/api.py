"""`Janus`: the model with everything around it, for people who want pictures and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from janus_jax.checkpoint import LoadedModel, load_model, save_model
from janus_jax.config import JanusConfig
from janus_jax.errors import BadPrompts, InputError
from janus_jax.functional import flat_params
from janus_jax.generate import image as draw
from janus_jax.generate.batch import ChatRequest, ChatResult, answer_batch
from janus_jax.generate.chat import Conversation, ImageSource
from janus_jax.generate.sampling import Sampling
from janus_jax.generate.settings import check_settings
from janus_jax.generate.stops import Stop
from janus_jax.processing import to_uint8
from janus_jax.quantize import is_quantized


class Janus:
    """A loaded model.

    For your own `jax.jit`, use `janus_jax.functional` with `model.graphdef` and `model.params`.

    Attributes:
      name: what it was loaded as.
      config: architecture.
      graphdef: static part of the model.
      params: parameters.
      tokenizer: vocabulary.
      processor: image settings, role names, system prompt.
      fingerprint: identifies the stored weights.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self.name = loaded.name
        self.config: JanusConfig = loaded.config
        self.graphdef = loaded.graphdef
        self.params = loaded.params
        self.tokenizer = loaded.tokenizer
        self.processor = loaded.processor
        self.fingerprint = loaded.fingerprint

    @property
    def dtype(self) -> np.dtype:
        """Precision of the language model's weights; int8 where they are quantized."""
        return np.dtype(flat_params(self.params)["llm/layers/0/attn/q/kernel"].dtype)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: Any = None, mesh: Mesh | None = None
    ) -> Janus:
        """Loads a model.

        Args:
          name_or_path: `emoji` (shipped), `debug` (random weights), a model directory, or PyTorch
            weights (a directory, or a Hugging Face id with optional `@revision`), which are
            converted once into the user's cache.
          dtype: `float32`, `bfloat16`, or `int8` for the language model's matrices; by default
            float32 on the CPU, bfloat16 elsewhere.
          mesh: spreads the model over devices (`janus_jax.sharding.make_mesh`); each reads its own
            part of the files only. None: the default device.

        Raises:
          InputError: no such model or dtype, too little memory, or a damaged model.
        """
        return cls(load_model(name_or_path, dtype=dtype, mesh=mesh))

    def generate_codes(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        first: int = 0,
        cfg: float = 5.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        at_once: int | None = None,
        progress: draw.Progress | None = None,
    ) -> np.ndarray:
        """Like `generate_images`, without decoding: the VQ codes, int32 [len(prompts), n, P]."""
        return self._draw(
            prompts,
            n,
            first=first,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            at_once=at_once,
            progress=progress,
        )

    def generate_images(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        first: int = 0,
        cfg: float = 5.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        at_once: int | None = None,
        progress: draw.Progress | None = None,
        drawn: Callable[[int, int, Image.Image], None] | None = None,
    ) -> list[list[Image.Image]]:
        """Draws pictures.

        Picture i of a prompt depends on the prompt, i, `seed` and the sampling settings alone, not
        on what else is drawn in the same call (Janus-Pro report, section 2.1, for the method).

        Args:
          prompts: one or more texts. Where some cannot be used, the call fails before anything is
            drawn, and `BadPrompts.problems` says which; `check_prompts` tells beforehand.
          n: pictures a prompt.
          first: number of the first picture; with 8, the pictures are 8, 9, ...
          cfg: weight of classifier-free guidance; 1 is none.
          temperature: 0 takes the likeliest code each time.
          top_k: draw from the k likeliest codes only.
          top_p: draw from the fewest likeliest codes that hold this probability only.
          seed: 0 to 2**32 - 1.
          at_once: pictures drawn at once; None draws as many as memory allows, at most 16.
          progress: called with (codes drawn, codes in all) now and then.
          drawn: called with (place of the prompt, number of the picture, picture) as soon as the
            pictures that are drawn at once are there, so that a stop loses none of them.

        Returns:
          For each prompt its n pictures, RGB, `config.image_size` pixels square.

        Raises:
          BadPrompts: prompts that cannot be used, each named.
          InputError: a setting that cannot be used, named, or too little memory.
        """
        pictures: dict[tuple[int, int], Image.Image] = {}

        def decode(place: int, number: int, codes: np.ndarray) -> None:
            picture = pictures[place, number] = self.decode_codes(codes[None, None])[0][0]
            if drawn is not None:
                drawn(place, number, picture)

        self._draw(
            prompts,
            n,
            first=first,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            at_once=at_once,
            progress=progress,
            drawn=decode,
        )
        numbers = range(int(first), int(first) + int(n))
        return [[pictures[place, number] for number in numbers] for place in range(len(prompts))]

    def _draw(
        self,
        prompts: Sequence[str],
        n: int,
        *,
        first: int,
        cfg: float,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        at_once: int | None,
        progress: draw.Progress | None,
        drawn: draw.Drawn | None = None,
    ) -> np.ndarray:
        check_settings(
            n=n,
            first=first,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            at_once=at_once,
        )
        return draw.generate_codes(
            self.graphdef,
            self.params,
            self.config,
            self.tokenizer,
            self.processor.roles,
            prompts,
            numbers=range(int(first), int(first) + int(n)),
            cfg=cfg,
            how=_sampling(temperature, top_k, top_p),
            seed=int(seed),
            at_once=None if at_once is None else int(at_once),
            progress=progress,
            drawn=drawn,
        )

    def check_prompts(self, prompts: Sequence[str]) -> list[InputError | None]:
        """What is wrong with each of one or more prompts; None where nothing is."""
        problems: dict[int, InputError] = {}
        try:
            draw.encode_prompts(self.config, self.tokenizer, self.processor.roles, prompts)
        except BadPrompts as error:
            problems = error.problems
        return [problems.get(place) for place in range(len(prompts))]

    def decode_codes(self, codes: np.ndarray) -> list[list[Image.Image]]:
        """VQ codes [Q, n, P] -> pictures, n for each of Q prompts.

        Raises:
          InputError: not integers of that shape, or codes that the model does not have.
        """
        codes, size = np.asarray(codes), self.config.num_image_tokens
        if codes.shape[2:] != (size,) or not codes.size or codes.dtype.kind not in "iu":
            raise InputError(
                f"codes is {codes.dtype} of shape {codes.shape}",
                f"integers of shape (prompts, pictures, {size})",
            )
        most = self.config.vq.codebook_size - 1
        if codes.min() < 0 or codes.max() > most:
            raise InputError(f"codes holds {codes.min()} to {codes.max()}", f"0 to {most}")
        flat = draw.decode_codes(
            self.graphdef, self.params, codes.reshape(-1, size).astype(np.int32)
        )
        pictures = [Image.fromarray(picture) for picture in to_uint8(flat)]
        n = codes.shape[1]
        return [pictures[i : i + n] for i in range(0, len(pictures), n)]

    @overload
    def chat(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        system: str | None = None,
        stop: Stop = (),
        stream: Literal[False] = False,
    ) -> str: ...

    @overload
    def chat(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        system: str | None = None,
        stop: Stop = (),
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def chat(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        system: str | None = None,
        stop: Stop = (),
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Answers a question, about pictures or without.

        Args:
          question: the text; it follows the pictures in the prompt.
          images: files, bytes of files, or PIL images.
          max_tokens: most tokens of the answer; it also ends where the model's positions do.
          temperature: 0 takes the likeliest token each time.
          top_k: draw from the k likeliest tokens only.
          top_p: draw from the fewest likeliest tokens that hold this probability only.
          seed: 0 to 2**32 - 1; matters above temperature 0.
          system: system prompt; None is the model's own.
          stop: texts before which the answer ends, or a function that sees the answer so far after
            each piece and returns True to end it.
          stream: give the answer in pieces as it is made, instead of whole.

        Returns:
          The answer without outer white space; or with `stream` an iterator over its pieces, which
          join to the same text but for that white space.

        Raises:
          InputError: a question, image or setting that cannot be used; names it. Also with
            `stream` it is raised by this call, before the first piece.
        """
        chat = self.start_chat(system, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return chat.ask(question, images, max_tokens=max_tokens, stop=stop, stream=stream)

    def start_chat(
        self,
        system: str | None = None,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Conversation:
        """Starts a conversation of several turns: `chat.ask(question, images)`, again and again.

        Each turn reads only what is new. The arguments are those of `chat`; the first answer is
        that of `chat` with the same ones.

        Raises:
          InputError: a setting that cannot be used; names it.
        """
        check_settings(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        how = _sampling(temperature, top_k, top_p)
        return Conversation(self._loaded, system=system, how=how, seed=seed)

    def chat_batch(
        self,
        requests: Sequence[ChatRequest],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Stop = (),
    ) -> list[ChatResult]:
        """Answers many questions at once, each with its own pictures, seed and system prompt.

        As many as fit into the memory are answered together. Every request is answered as it would
        be alone, but for rounding: sums over more rows run in another order. One that cannot be
        used, or does not fit, fails alone: its result holds the error, which names it.

        Raises:
          InputError: a setting of all requests that cannot be used.
        """
        check_settings(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        how = _sampling(temperature, top_k, top_p)
        most = int(max_tokens)  # NumPy's small integers would overflow in sums
        return answer_batch(self._loaded, requests, max_tokens=most, how=how, stop=stop)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a model directory with the weights in the precision they were stored in.

        Args:
          path: a new or empty directory, or a model directory to replace.

        Raises:
          InputError: the path holds something else or cannot be written, or the weights were
            rounded when they were loaded: to int8, or to bfloat16 from float32.
        """
        if is_quantized(self.params):
            raise InputError(
                "an int8 model cannot be saved: its rounding is for running only",
                fix="load it without dtype int8 and save that",
            )
        loaded = self._loaded
        if not loaded.exact:
            raise InputError(
                f"a model stored in {loaded.stored_dtype or 'several precisions'} cannot be saved "
                f"as it was loaded, rounded to {self.dtype}",
                fix="load it with dtype float32, or copy its directory",
            )
        save_model(
            path,
            self.config,
            self.params,
            self.tokenizer,
            self.processor,
            card_text=loaded.card_text,
            dtype=loaded.stored_dtype,
            source=loaded.source,
        )


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
    return Sampling(
        np.float32(temperature),
        None if top_k is None else np.int32(top_k),
        None if top_p is None else np.float32(top_p),
    )

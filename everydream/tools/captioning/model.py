"""A captioning model of the transformers library, behind one callable."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from everydream.data.texts import normalise
from everydream.errors import ConfigError

Captioner = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""Images and their prompts -> what the model says, without the prompts; for an empty prompt the model has its own."""

_TASK = "image-text-to-text"
_QUESTION = "Describe this image in one sentence."
_TASK_PROMPT = "<CAPTION>"
"""What Florence-2 and those made like it take for a question; their processors list such words."""


def load_captioner(model: str, device: str | None, max_new_tokens: int) -> Captioner:
    """Load a model by its folder or hub id. Raises ConfigError if it cannot caption images.

    Code that comes with a model is never run.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415 - takes seconds to import

    transformers.logging.set_verbosity_error()
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return _Captioner(transformers.pipeline(_TASK, model=model, device=wanted), max_new_tokens)
    except Exception as error:
        # The library raises a dozen kinds for a folder that is not there, another kind of model, a device that is not.
        raise ConfigError(
            f"--model {model} cannot be loaded on {wanted} to caption images: {first_line(error)}\n"
            f"It must be a folder or hub id of an {_TASK} model that transformers {transformers.__version__} knows by "
            "itself (BLIP, Florence-2 in its native form, LLaVA, Qwen-VL, ...): code inside a model is not run."
        ) from error


class _Captioner:
    """Calls the pipeline so that every kind of model gets images and prompts as it was trained."""

    def __init__(self, pipe: Any, max_new_tokens: int) -> None:
        self._pipe = pipe
        self._is_chat = getattr(pipe.processor, "chat_template", None) is not None
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "return_full_text": False}
        tokenizer = pipe.processor.tokenizer
        if self._is_chat:
            # What is generated follows the prompt, so a shorter prompt of a batch is filled up on its left.
            tokenizer.padding_side = "left"
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
        self._bos = tokenizer.bos_token
        has_tasks = _TASK_PROMPT in getattr(pipe.processor, "task_prompts_without_inputs", ())
        self._own_prompt = _QUESTION if self._is_chat else _TASK_PROMPT if has_tasks else ""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """Return one caption per image."""
        prompts = [prompt or self._own_prompt for prompt in prompts]
        if self._is_chat:
            return self._said([[image] for image in images], [self._turn(prompt) for prompt in prompts])
        if len(set(prompts)) > 1:
            # Models without a chat form read on from the prompt's last token, which filling up would push away.
            return [self._said([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
        return self._said(list(images), list(prompts))

    def _turn(self, prompt: str) -> str:
        """Return the text of a conversation that asks `prompt` about one image."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self._pipe.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text

    def _said(self, images: list[Any], prompts: list[str]) -> list[str]:
        options = dict(self._options)
        if self._is_chat and self._bos is not None and prompts[0].startswith(self._bos):
            options["add_special_tokens"] = False  # the template has written them
        return [normalise(found["generated_text"]) for found in self._pipe(images=images, text=prompts, **options)]


def first_line(error: Exception) -> str:
    """Return what an exception of a library says, cut to its first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

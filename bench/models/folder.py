"""Any transformers checkpoint: "path:DIR" from a local folder, "hf:NAME" from the hub.

The kind is read from the configuration: an architecture whose name ends in ForCausalLM (or LMHeadModel) is causal, all
others are encoders. Only safetensors are read and no code of the checkpoint is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.models.base import Kind, Model, ModelError, Source, register
from quant.files import check_model_folder

__all__ = ["kind_of", "load_folder", "offline"]

CAUSAL = ("ForCausalLM", "LMHeadModel")
SUFFIXES = (".safetensors", ".json", ".txt", ".model")


@contextmanager
def offline(on: bool = True) -> Iterator[None]:
    """Forbid transformers and the hub client the network while inside (with `on` false: leave them as they are)."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    if on:
        os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def kind_of(config: Any) -> Kind:
    """The kind of model that a transformers configuration describes, from its `architectures`."""
    names = config.architectures or []
    return "causal" if any(name.endswith(CAUSAL) for name in names) else "encoder"


def load_folder(spec: str, where: Path | str, *, note: str, kind: Kind | None = None, local: bool = True) -> Model:
    """The checkpoint in the folder `where` (with `local` false: of that name on the hub) as a `Model` named `spec`.

    Raises ModelError when transformers cannot load it, saying which folder or name and what it said.
    """
    import transformers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    with offline(local):
        try:
            config = AutoConfig.from_pretrained(where, **options)
            kind = kind or kind_of(config)
            family: Any = AutoModelForCausalLM if kind == "causal" else AutoModel
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            module, loaded = family.from_pretrained(
                where, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"model {spec!r} cannot be loaded from {where}: {error}") from error
    _complete(spec, where, loaded["missing_keys"])
    if kind == "encoder" and getattr(module, "pooler", None) is not None:
        module.pooler = None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Model(spec, kind, module.eval(), tokenizer, note)


def _complete(spec: str, where: Path | str, missing: Iterable[str]) -> None:
    """Raise ModelError when tensors are missing, which transformers would draw at random; a pooler is not used."""
    absent = sorted(name for name in missing if "pooler" not in name.split("."))
    if absent:
        names = ", ".join(absent[:3]) + ", ..." * (len(absent) > 3)
        raise ModelError(f"model {spec!r}: {where} lacks {len(absent)} tensors ({names}); save the whole model again")


def _checked(argument: str) -> Path:
    folder = Path(argument)
    if not folder.is_dir():
        raise ModelError(f"model 'path:{argument}': no such folder")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ModelError(f"model 'path:{argument}': no *.safetensors in {argument} (found: {found})")
    try:
        check_model_folder(folder)
    except ValueError as error:
        raise ModelError(f"model 'path:{argument}': {error}") from error
    return folder


def _path_content(argument: str) -> tuple[Path, ...]:
    return tuple(sorted(p for p in _checked(argument).iterdir() if p.suffix in SUFFIXES))


def _load_path(argument: str) -> Model:
    return load_folder(f"path:{argument}", _checked(argument), note=f"checkpoint in {Path(argument).name}")


def _snapshot(argument: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(argument, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except Exception as error:  # the hub client raises many unrelated kinds: no network, no such name, gated
        raise ModelError(f"model 'hf:{argument}' cannot be fetched: {error}; without a network use path:DIR") from error


def _hub_content(argument: str) -> tuple[Path, ...]:
    return tuple(sorted(p for p in _snapshot(argument).iterdir() if p.suffix in SUFFIXES))


def _load_hub(argument: str) -> Model:
    return load_folder(f"hf:{argument}", _snapshot(argument), note=f"{argument} from the Hugging Face hub")


register(Source("path", "a transformers checkpoint (safetensors) in a folder", _load_path, _path_content, takes="DIR"))
register(Source("hf", "a checkpoint of the Hugging Face hub", _load_hub, _hub_content, takes="NAME"))

"""Repositories of weights, on the Hugging Face hub or in a folder: a file of weights, and config.json about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason
from jaxtrain.readers import read_json, reading
from jaxtrain.redact import redact

Get = Callable[[str], Path | None]
"""From a file's name in the repository to where it lies; None where the repository has no such file."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Looked for in this order; a list of parts (`WEIGHTS.index.json`) stands for the parts."""


def hub_files(name: str) -> Get:
    """Files of `ORG/NAME[@REVISION]`, fetched once and then taken from the cache (HF_HUB_CACHE).

    HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are honoured. The function given raises UserError where there is no such
    repository or revision, or where it cannot be reached and the file is not in the cache.
    """
    repository, _, revision = name.partition("@")

    def get(file: str) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(repository, file, revision=revision or None, library_name="jaxtrain"))
        except errors.LocalEntryNotFoundError as error:
            if _known_not_to_exist(repository, file, revision or None):
                return None
            raise UserError(f"hf:{name}: {file} is not in the cache, and {_why_unreachable(error)}") from None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError:
            raise UserError(f"hf:{name}: asks for consent; give it on the hub, then set HF_TOKEN") from None
        except errors.RepositoryNotFoundError:
            raise UserError(f"hf:{name}: there is no such repository, or it is private (set HF_TOKEN)") from None
        except errors.RevisionNotFoundError:
            raise UserError(f"hf:{name}: the repository has no revision '{revision}'") from None
        except errors.HFValidationError:
            raise UserError(
                f"hf:{name}: is not the name of a repository; write hf:ORG/NAME or hf:ORG/NAME@REVISION"
            ) from None
        except Exception as error:  # the hub's client lets through what its transport raises
            raise UserError(f"hf:{name}: could not be fetched: {reason(error)}") from None

    return get


def _known_not_to_exist(repository: str, file: str, revision: str | None) -> bool:
    """Whether the cache remembers that there is no such file (a string would be its place, None: it does not know)."""
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(repository, file, revision=revision)
    return known is not None and not isinstance(known, str)


def _why_unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to fetch it"
    cause = error.__cause__ or error
    return f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__})"


def check_push() -> None:
    """Raises UserError where nothing can be pushed to the hub: there is no token, or no network by choice."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("--to hub: HF_HUB_OFFLINE forbids to push")
    if get_token() is None:
        raise UserError("--to hub: not logged in: set HF_TOKEN, or log in by `hf auth login`")


def push(folder: Path, name: str, *, public: bool) -> str:
    """Push a folder to ORG/NAME on the hub, in one commit; its address.

    A repository that is there stays private or public as it is. Raises UserError where the hub refuses, RunError where
    it cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="jaxtrain")
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model exported by jaxtrain")
    except errors.HFValidationError:
        raise UserError(f"--hub-name {name}: is not the name of a repository; write ORG/NAME") from None
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, redact(error.server_message or reason(error))
        raise UserError(f"--to hub: {name} was refused ({status}): {said.splitlines()[0] if said else ''}") from None
    except Exception as error:  # the hub's client lets through what its transport raises
        raise RunError(f"--to hub: {name} could not be pushed: {redact(reason(error))}") from None
    return str(address)


def folder_files(folder: Path) -> Get:
    """Files of a folder that looks like a repository."""
    return lambda file: folder / file if (folder / file).is_file() else None


def weight_files(get: Get, source: str) -> list[Path]:
    """The file of weights, or its parts."""
    for name in WEIGHTS:
        path = get(name)
        if path is not None:
            return [path]
        index = get(f"{name}.index.json")
        if index is not None:
            with reading(index, "index of weights", "fetch it again"):
                parts = sorted({str(part) for part in read_json(index, "index").get("weight_map", {}).values()})
            found = {part: get(part) if Path(part).name == part else None for part in parts}
            paths = [path for path in found.values() if path is not None]
            if len(paths) < len(parts) or not parts:
                missing = ", ".join(part for part, path in found.items() if path is None)
                raise UserError(f"{source}: {index.name} names parts that are not there: {missing or 'none at all'}")
            return paths
    raise UserError(f"{source}: holds no {' or '.join(WEIGHTS)}")

"""What the hub says: which files a repository has, and what its refusals mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bitnet.errors import AccessError, HubError, NotFoundError, OfflineError, RateLimitError
from bitnet.hub.choice import File

LOGIN = "Accept its terms on the hub, then log in: `hf auth login`, or set HF_TOKEN."
SWITCHES = ("HF_HUB_OFFLINE", "BITNET_OFFLINE")


@dataclass(frozen=True, slots=True)
class Repository:
    repo: str
    commit: str
    files: list[File]


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> str:
    """The variable that forbids the network, "" where none does."""
    yes = ("1", "true", "yes", "on")
    return next((name for name in SWITCHES if os.environ.get(name, "").lower() in yes), "")


def look(repo: str) -> Repository:
    """One request: all files with their sizes and hashes."""
    from huggingface_hub import HfApi

    with refusals(repo):
        info = HfApi(endpoint=endpoint()).model_info(repo, files_metadata=True, timeout=30)
    listing = [_file(each) for each in info.siblings or ()]
    if not info.sha:
        raise HubError(f"{endpoint()} does not say which commit of {repo} it has.", "Try again later.")
    return Repository(repo, info.sha, [file for file in listing if file.etag])


def _file(sibling: Any) -> File:
    lfs = sibling.lfs  # an object, or in older releases a dictionary
    sha256 = (lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else ""
    return File(sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id or "")


@contextmanager
def refusals(repo: str) -> Iterator[None]:
    """What huggingface_hub and the library below it raise, as errors of ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise AccessError(f"{repo} is open only to those who accept its terms.", LOGIN) from error
    except errors.RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise refusal(repo, error.response) from error
        raise NotFoundError(
            f"The hub has no {repo}, or it is private; nor is there a file of that name.",
            "Check the name (`bitnet list --known` shows some); for a private one: `hf auth login`, or set HF_TOKEN.",
        ) from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotFoundError(f"{repo} has changed: a file of it is gone.", "Try again.") from error
    except errors.HfHubHTTPError as error:
        raise refusal(repo, error.response) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of the HTTP library it uses
        if getattr(error, "errno", None):  # the disk
            raise
        raise OfflineError(
            f"{endpoint()} cannot be reached: {error}.",
            "Check the network, or name a model that is here: `bitnet list`",
        ) from error


def refusal(repo: str, response: Any) -> HubError:
    status = getattr(response, "status_code", None)
    if status == 401:  # so it answers strangers about what is private, and about what does not exist
        return AccessError(f"The hub has no {repo}, or not for everybody (401).", f"Check the name. {LOGIN}")
    if status == 403:
        return AccessError(f"The hub refuses {repo} (403).", LOGIN)
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        return RateLimitError(
            "The hub has had too many requests from here (429).",
            f"Wait {f'{wait} seconds' if wait.isdecimal() else 'a few minutes'}, or log in: `hf auth login`.",
        )
    return HubError(f"The hub answers {status} for {repo}.", "Try again later.")

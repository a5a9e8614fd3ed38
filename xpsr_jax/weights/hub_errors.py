"""Turns the errors of the hub's client into one line that says what the user can do."""

from collections.abc import Iterator

from xpsr_jax.errors import UserError

# Temporary errors: the same request may succeed later.
_LATER = (408, 429, 500, 502, 503, 504)


def explained(error: BaseException, name: str, *, writing: bool = False) -> UserError:
    """The UserError for an error of the hub's client.

    Args:
      name: the requested model, `owner/name` and more.
      writing: whether the request was an upload.
    """
    from huggingface_hub import errors

    if isinstance(error, UserError):
        return error
    chain = list(_chain(error))
    status = next(filter(None, map(_status, chain)), None)
    kinds = tuple(type(each) for each in chain)
    repository = name.partition("@")[0].partition(":")[0]
    if writing and (found := _refused_to_write(chain, status, name)):
        return found
    if _any(kinds, errors.OfflineModeIsEnabled):
        return UserError(
            f"{name} is not a local path and not in the hub's cache, and HF_HUB_OFFLINE forbids the download"
        )
    if _any(kinds, errors.GatedRepoError):
        return UserError(
            f"{name}: its owner must grant access. Ask for it on the model's page on the hub ({repository}), then log "
            "in with `hf auth login`, or set HF_TOKEN"
        )
    if _any(kinds, errors.RevisionNotFoundError):
        return UserError(f"{name}: {repository} has no such revision on the hub; name a branch, a tag or a commit")
    if _any(kinds, errors.EntryNotFoundError) and status == 404:
        return UserError(f"{name}: the hub lists a file that it does not have ({_first_line(error)}); try again later")
    if _any(kinds, errors.RepositoryNotFoundError) or status == 404:
        return UserError(
            f"{name} is not a local path, and the hub shows you no model {repository}: check the name; for a private "
            "model log in with `hf auth login`, or set HF_TOKEN"
        )
    if status in (401, 403):
        return UserError(
            f"{name}: the hub denies you access ({status}): log in with `hf auth login`, or set HF_TOKEN to a token "
            "that may read it"
        )
    if status == 429:
        return UserError(
            f"{name}: too many requests to the hub (429): try again in a few minutes, or log in for a higher limit"
        )
    if status is not None:
        return UserError(f"{name}: the hub answered with error {status}; try again later")
    if "Consistency check failed" in str(error):
        return UserError(f"{name}: a downloaded file has the wrong size ({_first_line(error)}); try again")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{name} is not a local path and not a valid name on the hub: {_first_line(error)}")
    if is_unreachable(error):
        return UserError(
            f"{name} is not a local path, and the hub cannot be reached ({_first_line(chain[-1])}): check the network, "
            "or name a local folder"
        )
    what = "uploaded to" if writing else "downloaded from"
    return UserError(f"{name} cannot be {what} the hub: {_first_line(error)}")


def _refused_to_write(chain: list[BaseException], status: int | None, name: str) -> UserError | None:
    from huggingface_hub import errors

    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return UserError(f"{name}: HF_HUB_OFFLINE forbids uploads to the hub; unset it")
    if status in (401, 403, 404):
        return UserError(
            f"{name}: the hub does not let you write there ({status}): log in with `hf auth login`, or set HF_TOKEN to "
            "a token that may write, and check that you own the repository"
        )
    if status is None and is_unreachable(chain[0]):
        return UserError(f"{name}: the hub cannot be reached ({_first_line(chain[-1])}): check the network")
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer, or a temporary error."""
    from huggingface_hub import errors

    chain = list(_chain(error))
    if status := next(filter(None, map(_status, chain)), None):
        return status in _LATER
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return True
    # Errors of the HTTP library: the client's releases use different ones.
    return any(type(each).__module__.partition(".")[0] in _HTTP_LIBRARIES for each in chain) or any(
        isinstance(each, ConnectionError | TimeoutError) for each in chain
    )


_HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}


def _any(kinds: tuple[type, ...], wanted: type) -> bool:
    return any(issubclass(kind, wanted) for kind in kinds)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the original cause last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__

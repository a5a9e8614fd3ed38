"""What the hub's client says when something goes wrong, in one line for the person who can put it right."""

from collections.abc import Iterator

from xpsr_jax.errors import UserError

# The server is there and works, but not now.
_LATER = (408, 429, 500, 502, 503, 504)


def explained(error: BaseException, name: str, *, writing: bool = False) -> UserError:
    """What to tell of an error of the hub's client.

    Args:
      name: what was asked for, `owner/name` and more.
      writing: it was to be written to.
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
            f"{name} is no path here and not in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it"
        )
    if _any(kinds, errors.GatedRepoError):
        return UserError(
            f"{name}: its owner lets in who has asked. Do so on its page of the hub ({repository}), then log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if _any(kinds, errors.RevisionNotFoundError):
        return UserError(f"{name}: {repository} has no such revision on the hub; name a branch, a tag or a commit")
    if _any(kinds, errors.EntryNotFoundError) and status == 404:
        return UserError(f"{name}: the hub lists a file that it does not have ({_first_line(error)}); try again later")
    if _any(kinds, errors.RepositoryNotFoundError) or status == 404:
        return UserError(
            f"{name} is no path here, and the hub has no model {repository} that you may see: check the name; for a "
            "private one log in with `hf auth login`, or set HF_TOKEN"
        )
    if status in (401, 403):
        return UserError(
            f"{name}: the hub does not let you in ({status}): log in with `hf auth login`, or set HF_TOKEN to a token "
            "that may read it"
        )
    if status == 429:
        return UserError(
            f"{name}: the hub was asked too often (429): wait some minutes and try again, or log in, which allows more"
        )
    if status is not None:
        return UserError(f"{name}: the hub answers with error {status}; try again later")
    if "Consistency check failed" in str(error):
        return UserError(f"{name}: a file came in another size than the hub says ({_first_line(error)}); try again")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{name} is no path here and no name that the hub can have: {_first_line(error)}")
    if is_unreachable(error):
        return UserError(
            f"{name} is no path here, and the hub is not to be reached ({_first_line(chain[-1])}): check the network, "
            "or name a local folder"
        )
    what = "written to" if writing else "fetched from"
    return UserError(f"{name} cannot be {what} the hub: {_first_line(error)}")


def _refused_to_write(chain: list[BaseException], status: int | None, name: str) -> UserError | None:
    from huggingface_hub import errors

    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return UserError(f"{name}: HF_HUB_OFFLINE forbids to write to the hub")
    if status in (401, 403, 404):
        return UserError(
            f"{name}: the hub does not let you write there ({status}): log in with `hf auth login`, or set HF_TOKEN to "
            "a token that may write, and look whether the owner is you"
        )
    if status is None and is_unreachable(chain[0]):
        return UserError(f"{name}: the hub is not to be reached ({_first_line(chain[-1])}): check the network")
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer of its own, or one that it may give otherwise later."""
    from huggingface_hub import errors

    chain = list(_chain(error))
    if status := next(filter(None, map(_status, chain)), None):
        return status in _LATER
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return True
    # Those of the HTTP library, of which the client has had three.
    return any(type(each).__module__.partition(".")[0] in _HTTP_LIBRARIES for each in chain) or any(
        isinstance(each, ConnectionError | TimeoutError) for each in chain
    )


_HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}


def _any(kinds: tuple[type, ...], wanted: type) -> bool:
    return any(issubclass(kind, wanted) for kind in kinds)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it, the first one last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__

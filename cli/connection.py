"""From a command to the controller: opening the client, and turning its errors into `Problem`s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.problems import Fault, Problem

if TYPE_CHECKING:
    from cli.documents import Document
    from controller.client import ApiError, Client


@contextmanager
def controller(api: str = "", documents: Sequence[Document] = ()) -> Iterator[Client]:
    """The controller at `api`, else at $SLUICE_API, else at the default socket.

    Args:
        documents: what was sent, so that a refusal can name file and line.

    Raises:
        Problem: no controller answers, or it refuses.
    """
    from controller.client import ApiError, Client, ClientError, Unreachable

    try:
        with Client(api) as client:
            yield client
    except ApiError as error:
        raise Problem(_faults(error, documents)) from None
    except Unreachable:
        found = api_in_use(api)
        raise Problem(
            [
                Fault(
                    "controller",
                    "none answers there",
                    found,
                    "start one with `sluice up` (or `sluice controller run`), "
                    "or set SLUICE_API to its unix:/path or http://address:port",
                )
            ]
        ) from None
    except ClientError as error:
        raise Problem([Fault("controller", str(error))]) from None


def api_in_use(api: str) -> str:
    """The address that a client made with `api` talks to."""
    import os

    from controller.client import DEFAULT_API

    return api or os.environ.get("SLUICE_API", "") or DEFAULT_API


def _faults(error: ApiError, documents: Sequence[Document]) -> list[Fault]:
    faults = []
    for each in error.problems:
        where = each.field
        document = _document(each.resource, documents)
        if document is not None:
            where = ": ".join(filter(None, (document.where(each.field), each.resource, each.field)))
        elif each.resource and each.resource not in each.field:
            where = ": ".join(filter(None, (each.resource, each.field)))
        todo = each.todo
        if error.status in (401, 403) and not todo:
            todo = "set SLUICE_API_TOKEN to the text in the controller's state folder, file api-token"
        faults.append(Fault(where, each.message, each.found, todo))
    return faults


def _document(resource: str, documents: Sequence[Document]) -> Document | None:
    """The document that the controller means by `Network default/red` or `document 3` (of what was sent)."""
    if resource.startswith("document "):
        number = resource.removeprefix("document ")
        if number.isdecimal() and 0 < int(number) <= len(documents):
            return documents[int(number) - 1]
    for document in documents:
        if resource and resource == document.title():
            return document
    return None

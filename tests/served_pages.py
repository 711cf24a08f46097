# SPDX-License-Identifier: Apache-2.0
"""Pages of `longmem view`, served by a thread of the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

from pipelines.view.job import open_answers
from pipelines.view.page import render
from pipelines.view.questions import AbstractAnswers
from pipelines.view.server import ViewServer


@contextmanager
def served(answers: AbstractAnswers, page: str) -> Iterator[ViewServer]:
    """Serve a page and its answers on a free port."""
    with ViewServer(answers, page, 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def served_runs(runs: dict[str, Path]) -> Iterator[Callable[[str], str]]:
    """Yield a function that serves the run of a name and returns the address of its page."""
    with ExitStack() as opened:

        def serve(name: str) -> str:
            answers = open_answers(runs[name])
            return opened.enter_context(served(answers, render("small", kind=answers.page_kind))).url

        yield serve

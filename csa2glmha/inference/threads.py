"""Calls that take turns: each in a thread of its own, one of them computing at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from csa2glmha.inference.system import end_helpers, give_back_memory, share_heap

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class _Abandoned(BaseException):
    """Ends the thread of a call that is not needed any more; no Exception, so that no network catches it."""


class PausingCall(Generic[Question, Answer, Result]):
    """A call that pauses where it asks for something, until it gets the answer.

    It computes only while :meth:`proceed` waits for it. PyTorch's settings are those of the thread that
    makes this object: inference mode, gradients and autocast are each thread's own otherwise.

    Args:
        function: what to call. What it calls may use :meth:`ask`.

    Attributes:
        result: what the call gave, when it has ended.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self.result: Result | None = None
        self._function, self._settings = function, _torch_settings()
        self._answers: SimpleQueue[tuple[Answer | None]] = SimpleQueue()
        self._reports: SimpleQueue[tuple[Question | None, BaseException | None]] = SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def proceed(self, answer: Answer | None = None) -> Question | None:
        """Let it compute, with what it asked for, up to its next question; None: it has ended.

        Raises:
            BaseException: what the call raised.
        """
        if self._thread.ident is None:
            share_heap()
            self._thread.start()
        self._answers.put((answer,))
        question, error = self._reports.get()
        if error is not None:
            raise error
        return question

    def ask(self, question: Question) -> Answer:
        """The answer; to be called by the call itself."""
        _make_room()
        self._reports.put((question, None))
        answer = self._next()
        assert answer is not None
        return answer

    def abandon(self) -> None:
        """Let it end at its next question, or at once where it waits for an answer."""
        self._abandoned = True
        self._answers.put((None,))

    def join(self) -> None:
        """Wait for the end, after :meth:`abandon`."""
        if self._thread.ident is not None:
            self._thread.join()

    def _next(self) -> Answer | None:
        (answer,) = self._answers.get()
        if self._abandoned:
            raise _Abandoned
        return answer

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._next()
            with self._settings():
                self.result = self._function()
        except _Abandoned:
            pass
        except BaseException as caught:
            error = caught
        give_back_memory()
        self._reports.put((None, error))


@contextlib.contextmanager
def ended_together(calls: list[PausingCall[Question, Answer, Result]]) -> Iterator[None]:
    """End all calls with the block, however it ends: with an error of one of them, or an interrupt."""
    try:
        yield
    finally:
        for call in calls:
            call.abandon()
        for call in calls:
            call.join()


def _make_room() -> None:
    """Keep nothing while this call waits that others need."""
    give_back_memory()
    end_helpers()


def _torch_settings() -> Callable[[], contextlib.AbstractContextManager[object]]:
    """What makes another thread compute as this one does."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    devices = [kind for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]
    casts = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in devices]
    threads = torch.get_num_threads()

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            torch.set_num_threads(threads)
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype, enabled in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    return settings

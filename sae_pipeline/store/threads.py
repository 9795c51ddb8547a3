"""How many threads PyTorch divides an operation among, told to one thread and to no other."""

from __future__ import annotations

from threading import Lock, Thread

_telling = Lock()


def limit_to_one_thread() -> None:
    """Limit PyTorch's operations to one thread where the calling thread asks for them, and nowhere else.

    A thread takes over the process's number at its first question, and would do so after being told another. Telling
    it one also changes the process's number, for threads to come: a thread of no other use puts that back.
    """
    import torch  # much of what uses this package does without it

    with _telling:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        restoring = Thread(target=torch.set_num_threads, args=(before,))
        restoring.start()
        restoring.join()

"""`bc2` and `python -P -m bc2`: signals are followed before anything long is imported."""

import _signal  # type: ignore[import-not-found]  # `signal` without what that imports
import os


def main(argv: list[str] | None = None) -> None:
    for signum in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(signum) != _signal.SIG_IGN:
            _signal.signal(signum, lambda signum, _: os._exit(128 + signum))
    from bc2.process import signals, standard_streams

    standard_streams.hold_descriptors()
    signals.arm()
    from bc2.cli import main as run

    run(argv)


if __name__ == "__main__":
    main()

"""Bytes of a file on the hub, by HTTP ranges, straight into the caller's memory.

huggingface_hub brings the requests, the token (which a redirect to another host does not get) and the waiting where
the hub is busy. Here is what it does not do: a broken answer goes on where it was, and every answer is checked to be
the range that was asked for, of a file of the size that was listed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from specdiag.checkpoint.hub import BUSY, is_hopeless, refuse_odd_answers, translate_hub_errors, transport_errors
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

ATTEMPTS = 8
"""Number of attempts in a row without a byte before giving up."""
FIRST_PAUSE = 0.5
"""Seconds of the pause after the first such attempt; each further pause is twice as long, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 8.0
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19})")


_log = logging.getLogger("specdiag")


class _Broken(Exception):
    """An answer that may be better the next time; the message describes it."""


@dataclass(slots=True)
class Patience:
    """Shared by all reads of a repository: once one of them gave up, the others try once, until bytes come again."""

    lost: bool = False

    def wait(self, failures: int) -> bool:
        """Pause before the next attempt.

        Args:
            failures: attempts in a row that brought no byte, this read's own.

        Returns:
            False, without a pause, where it is time to give up.
        """
        self.lost = self.lost or failures >= ATTEMPTS
        if not self.lost:
            time.sleep(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))
        return not self.lost


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of one commit.

    Attributes:
        repo: `org/name`, or a legacy one-word id.
        commit: the full hash.
        name: within the repository.
        size: bytes, as listed.
        patience: how long a broken connection is retried.
    """

    repo: str
    commit: str
    name: str
    size: int
    patience: Patience

    def fill(self, offset: int, out: RawArray) -> None:
        """Fill the C-contiguous array `out` with the bytes at `offset`. Safe in threads.

        Args:
            offset: of the first byte in the file.
            out: an array of any type; its size says how many bytes are read.

        Raises:
            SourceError: the hub does not give them, gives others, or the connection broke and stays so.
        """
        view = out.reshape(-1).view(np.uint8).data
        done = failures = 0
        while done < len(view):
            before, problem = done, "the answer ended early"
            try:
                for chunk in self._chunks(offset + done, offset + len(view)):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
            except HfHubHTTPError as error:
                self.patience.lost = error.response.status_code in BUSY
                with translate_hub_errors(self.repo, self.commit):
                    raise
            except (_Broken, *transport_errors()) as error:
                problem = str(error) or type(error).__name__
                if is_hopeless(error):
                    raise SourceError(f"'{self.repo}/{self.name}' cannot be read: {brief(problem, 200)}") from error
            if done > before:
                failures, self.patience.lost = 0, False
            else:
                failures += 1
            if done == len(view):
                return
            _log.info("'%s/%s' broke off at byte %d: %s", self.repo, self.name, offset + done, problem)
            if not self.patience.wait(failures):
                raise SourceError(
                    f"'{self.repo}/{self.name}' could not be read beyond byte {offset + done} of {self.size}, where "
                    f"{len(view) - done} more were asked for ({problem}): check the connection and run again"
                )

    def _chunks(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of one answer to a request for that range, at most all of it."""
        range_headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with (
            refuse_odd_answers(self.repo),
            http_stream_backoff(
                "GET",
                hf_hub_url(self.repo, self.name, revision=self.commit),
                headers=build_hf_headers() | range_headers,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                max_retries=0 if self.patience.lost else ATTEMPTS,
                base_wait_time=FIRST_PAUSE,
                max_wait_time=LONGEST_PAUSE,
                retry_on_exceptions=(),
                retry_on_status_codes=BUSY,
            ) as response,
        ):
            if response.status_code == 403 and response.history:
                raise _Broken("the address that the hub gave for it has expired")  # the next request gets another
            if response.status_code != 416:
                hf_raise_for_status(response)
            self._check(response.status_code, response.headers, begin, end)
            for chunk in response.iter_raw():
                begin += len(chunk)
                if begin > end:
                    raise self._other_file(f"more than the {end} bytes that were asked for")
                yield chunk

    def _check(self, status: int, headers: Mapping[str, str], begin: int, end: int) -> None:
        """Raise SourceError where the answer is not what was asked for: the beginning of this range of this file."""
        encoded = headers.get("content-encoding", "identity") != "identity"
        if status == 200 and not encoded and (begin, end) == (0, self.size):
            return
        if status == 200 or encoded:
            raise SourceError(
                f"{constants.ENDPOINT} does not give parts of '{self.repo}/{self.name}', which stream=True needs: "
                "leave it out to download"
            )
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if status != 206 or match is None or (int(match[1]), int(match[2])) != (begin, self.size):
            raise self._other_file(f"'{brief(headers.get('content-range', str(status)))}' for the bytes from {begin}")

    def _other_file(self, answer: str) -> SourceError:
        return SourceError(
            f"'{self.repo}/{self.name}' is listed with {self.size} bytes, and {constants.ENDPOINT} answers {answer}: "
            "run again, or leave out stream=True to download"
        )

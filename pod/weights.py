"""Weights for vLLM: from Hugging Face to a directory, or to Azure Blob Storage; whole and checked, or not at all.

Runs inside a pod, in vLLM's own image, which brings Python, huggingface_hub and the Azure SDK:

    weights.py download MODEL --revision COMMIT --to DIRECTORY --give-up-after SECONDS [--exclude PATTERN]...
    weights.py upload MODEL --revision COMMIT --to az://CONTAINER/PATH --give-up-after SECONDS [--exclude PATTERN]...
    weights.py ready az://CONTAINER/PATH --give-up-after SECONDS

Every file is checked against the size and the hash that the Hub's API names, and only then takes its name: in a
directory by a rename, in a container by the commit of its blocks. A marker comes last: who finds it finds everything.
Interrupted, it goes on where it stopped: a download in the middle of a file, an upload with the first file that is not
there yet. Refused for a while (429, 5xx, a broken connection), it waits as long as it is told, or longer each time.

Exit code 0: everything is there. 1: it is not, and the last line says why and what to do.
"""

from __future__ import annotations

import argparse
import base64
import errno
import fnmatch
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

MARKER = ".complete"
COMMIT = ".commit"
TOGETHER = 8  # files on their way at once; huggingface_hub's own number
BLOCK = 32 << 20  # bytes of a block blob's block; at most 50,000 make a blob
CHUNK = 1 << 20
LONGEST_PAUSE = 60.0  # seconds, where nobody asks for more
SILENCE = 30.0  # seconds without a byte after which a connection is given up
WRONG_MAX = 3  # times that a file may arrive with another hash
#: Seconds that a new role or federated credential may take to be known everywhere.
#: https://learn.microsoft.com/azure/role-based-access-control/troubleshooting
GRANT = 600.0
BEGAN = time.monotonic()


class FailedError(Exception):
    """It cannot be done now; the text says why, and what to do."""


class AgainError(Exception):
    """It may work later: after `seconds`, where the other side named them."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds


class Patience:
    """Pauses between attempts, until the time is up or another thread has failed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self.stopped = threading.Event()

    def pause(self, attempt: int, again: AgainError) -> None:
        """Wait for another attempt. Raises FailedError where that would be too late."""
        seconds = min(LONGEST_PAUSE, 2.0**attempt) if again.seconds is None else again.seconds
        if time.monotonic() + seconds > self._until:
            raise FailedError(
                f"{again}, and waiting would take longer than the {self._seconds:.0f} s of this attempt. What has "
                "arrived is kept: the next attempt goes on from there"
            )
        say(f"{again}; again in {seconds:.0f} s")
        self.stopped.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raises FailedError once another thread has."""
        if self.stopped.is_set():
            raise FailedError("stopped")


@dataclass(frozen=True)
class File:
    """A file of a model's repository, as the Hub describes it."""

    path: str
    size: int
    sha256: str  # of large files; empty for others,
    git: str  # which have git's hash of a blob

    def hasher(self) -> Any:
        """A hash that becomes `digest` once all bytes are in it."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size)  # noqa: S324  git's

    @property
    def digest(self) -> str:
        """What `hasher` must come to."""
        return self.sha256 or self.git


class Sink(Protocol):
    """Where a file goes: it takes bytes in order, and has its name only once `finish` is called."""

    position: int

    def write(self, data: bytes) -> None: ...

    def digest(self) -> str: ...

    def restart(self) -> None: ...

    def finish(self) -> None: ...


def say(text: str) -> None:
    """A line of the pod's log."""
    print(text, file=sys.stderr, flush=True)


# Hugging Face.


class Hub:
    """A model on Hugging Face. The token, if there is one, is read from the file that HF_TOKEN_PATH names."""

    def __init__(self, model: str, revision: str) -> None:
        import huggingface_hub

        self._hub = huggingface_hub
        self._model, self._revision = model, revision

    def files(self, exclude: list[str]) -> tuple[str, list[File]]:
        """The commit, and its files without those of the excluded patterns. Raises AgainError and FailedError."""
        api = self._hub.HfApi()
        with self._in_words():
            commit = api.model_info(self._model, revision=self._revision).sha
            entries = list(api.list_repo_tree(self._model, revision=commit, recursive=True))
        found = [
            File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
            for entry in entries
            if isinstance(entry, self._hub.RepoFile) and not any(fnmatch.fnmatch(entry.path, p) for p in exclude)
        ]
        return commit or self._revision, found

    def read(self, commit: str, file: File, offset: int) -> Iterator[tuple[int, bytes]]:
        """Bytes of a file with their place, from `offset` on or from 0. Raises AgainError and FailedError."""
        url = self._hub.hf_hub_url(self._model, file.path, revision=commit)
        headers = self._hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        session = self._hub.get_session()
        with (
            self._in_words(file.path),
            session.stream("GET", url, headers=headers, follow_redirects=True, timeout=SILENCE) as response,
        ):
            if response.is_error:
                response.read()
            self._hub.utils.hf_raise_for_status(response)
            # Who does not know ranges sends all of it.
            place = offset if response.status_code == 206 else 0
            for data in response.iter_bytes():  # as it comes: a larger piece would be lost where the connection breaks
                yield place, data
                place += len(data)

    @contextmanager
    def _in_words(self, path: str = "") -> Generator[None]:
        """Turns what huggingface_hub and httpx raise into AgainError and FailedError."""
        import httpx

        errors, what = self._hub.errors, path or f"the files of {self._model}"
        try:
            yield
        except httpx.TransportError as error:
            raise AgainError(f"{what}: the connection broke ({type(error).__name__})") from None
        except errors.HfHubHTTPError as error:
            status, asked = error.response.status_code, _asked_pause(error.response.headers)
            if status == 429:
                raise AgainError(f"{what}: Hugging Face limits the rate (429)", asked) from None
            if status >= 500 or status == 408:
                raise AgainError(f"{what}: Hugging Face answers {status}", asked) from None
            raise FailedError(self._refusal(status, isinstance(error, errors.RevisionNotFoundError), what)) from None

    def _refusal(self, status: int, revision: bool, what: str) -> str:
        page, tokens = f"https://huggingface.co/{self._model}", "https://huggingface.co/settings/tokens"
        if status == 401:
            return (
                f"bad token: Hugging Face does not accept it for {self._model} (401). Make one on {tokens} that may "
                "read gated models, and run `pulumi config set --secret aks-vllm:hf-token`, or set the vault's secret"
            )
        if status == 403:
            return (
                f"licence not accepted: the token's account may not read {what} (403). Accept it on {page} and wait "
                f"until access is granted; a fine-grained token must also be allowed gated repositories: {tokens}"
            )
        if status == 404 and revision:
            return (
                f"missing revision: {self._model} has no commit {self._revision} (404). {page}/commits/main lists "
                "them; set aks-vllm:revision"
            )
        if status == 404:
            return f"missing: {page} does not have {what} (404)"
        return f"{what}: Hugging Face answers {status}"


def _asked_pause(headers: Any) -> float | None:
    """Seconds that an answer asks to wait, by Retry-After or by the Hub's own RateLimit header; None: it does not."""
    asked = headers.get("retry-after", "")
    if asked.isdigit():
        return float(asked)
    if asked:
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            pass
    limit = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


# A directory.


class PartFile:
    """A file that is called *.part until it is whole. What an earlier attempt has left of it counts."""

    def __init__(self, path: Path, file: File) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._file = file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._to = self._part.open("ab")
        if self._to.tell() > file.size:
            self._to.truncate(0)
        self._hash = file.hasher()
        with self._part.open("rb") as kept:
            while data := kept.read(CHUNK):
                self._hash.update(data)
        self.position = self._to.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        self._to.write(data)
        self._hash.update(data)
        self.position += len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def restart(self) -> None:
        self._to.truncate(0)
        self._hash, self.position = self._file.hasher(), 0

    def finish(self) -> None:
        self._to.flush()
        os.fsync(self._to.fileno())
        self._to.close()
        self._part.replace(self._path)

    def close(self) -> None:
        """Keep what has arrived for the next attempt."""
        self._to.close()


def download(model: str, revision: str, target: Path, exclude: list[str], patience: Patience) -> None:
    """Fill a directory with one commit of a model."""
    if _is_whole(target, model, exclude):
        say(f"{target} is complete")
        return
    hub = Hub(model, revision)
    commit, files = _patiently(patience, lambda: hub.files(exclude))
    with _disk_words():
        target.mkdir(parents=True, exist_ok=True)
        noted = target / COMMIT
        if noted.exists() and noted.read_text() != commit:
            shutil.rmtree(target)  # files of two commits must not be mixed
            target.mkdir()
        if not noted.exists():
            # Once, and by a rename: half of it would be another commit's, and all that was fetched would go.
            part = target / f"{COMMIT}.part"
            part.write_text(commit)
            part.replace(noted)
        (target / MARKER).unlink(missing_ok=True)
        missing = [file for file in files if not _has_size(target / file.path, file.size)]
        kept = sum(_size(target / f"{file.path}.part") for file in missing)
        needed, free = sum(file.size for file in missing) - kept, shutil.disk_usage(target).free
        if needed > free:
            raise FailedError(_full(f"{needed / 1e9:,.1f} GB are still to come and {free / 1e9:,.1f} GB are free"))
    progress = Progress(files, sum(file.size for file in files) - needed)

    def one(file: File) -> None:
        with _disk_words():
            sink = PartFile(target / file.path, file)
            try:
                _fetch(hub, commit, file, sink, patience, progress)
            finally:
                sink.close()

    _all_of(missing, one, patience)
    with _disk_words():
        # Last, and by a rename: half a marker would be one.
        part = target / f"{MARKER}.part"
        part.write_text(_manifest(model, commit, exclude, files))
        part.replace(target / MARKER)
    say(f"{target} is complete: {len(files)} files, {progress.total / 1e9:,.1f} GB, commit {commit}")


def _is_whole(target: Path, model: str, exclude: list[str]) -> bool:
    """Whether a marker says so, and every file that it names is there in its size."""
    try:
        manifest = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        return False
    same = (manifest["model"], manifest["exclude"]) == (model, exclude)
    return same and all(_has_size(target / file["path"], file["size"]) for file in manifest["files"])


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def _disk_words() -> Generator[None]:
    """A full disk in words. EFBIG: the process may write no larger file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise FailedError(_full(error.strerror or "no space left")) from None


def _full(why: str) -> str:
    return (
        f"full disk: {why}. Take a larger OS disk (another aks-vllm:vm-size), a StorageClass (weights.storage-class) "
        "or no disk at all (weights.source: azure-blob)"
    )


# Azure Blob Storage.


class Blocks:
    """A blob that is nothing but uncommitted blocks until it is whole: nobody can read those."""

    def __init__(self, blob: Any, file: File) -> None:
        self._blob, self._file = blob, file
        self.restart()

    def restart(self) -> None:
        self._hash, self.position = self._file.hasher(), 0
        self._waiting, self._staged = bytearray(), []

    def write(self, data: bytes) -> None:
        self._waiting += data
        self._hash.update(data)
        self.position += len(data)
        while len(self._waiting) >= BLOCK:
            self._stage(bytes(self._waiting[:BLOCK]))
            del self._waiting[:BLOCK]

    def digest(self) -> str:
        return self._hash.hexdigest()

    def finish(self) -> None:
        from azure.storage.blob import BlobBlock

        if self._waiting:
            self._stage(bytes(self._waiting))
        with _blob_words():
            blocks = [BlobBlock(name) for name in self._staged]
            self._blob.commit_block_list(blocks, metadata={"digest": self._file.digest})

    def _stage(self, data: bytes) -> None:
        name = base64.b64encode(b"%08d" % len(self._staged)).decode()
        with _blob_words():
            self._blob.stage_block(name, data)
        self._staged.append(name)


def upload(model: str, revision: str, target: str, exclude: list[str], patience: Patience) -> None:
    """Copy one commit of a model to a container, without a disk in between."""
    container, prefix = _container(target)
    present = _patiently(patience, lambda: _blobs(container, prefix))
    if _is_uploaded(container, prefix, present, exclude):
        say(f"{target} is complete")
        return
    hub = Hub(model, revision)
    commit, files = _patiently(patience, lambda: hub.files(exclude))
    missing = [file for file in files if present.get(file.path) != (file.size, file.digest)]
    progress = Progress(files, sum(file.size for file in files) - sum(file.size for file in missing))

    def one(file: File) -> None:
        _fetch(hub, commit, file, Blocks(container.get_blob_client(prefix + file.path), file), patience, progress)

    _all_of(missing, one, patience)
    # vLLM would stream what an earlier choice of files has left there.
    for path in sorted(set(present) - {file.path for file in files}):
        _patiently(patience, functools.partial(_in_blob_words, container.delete_blob, prefix + path))
    text = _manifest(model, commit, exclude, files)
    _patiently(patience, lambda: _in_blob_words(container.upload_blob, prefix + MARKER, text, overwrite=True))
    say(f"{target} is complete: {len(files)} files, {progress.total / 1e9:,.1f} GB, commit {commit}")


def ready(target: str, patience: Patience) -> None:
    """See that an upload is complete. Raises FailedError if not."""
    container, prefix = _container(target)
    present = _patiently(patience, lambda: _blobs(container, prefix))
    if not _is_uploaded(container, prefix, present, None):
        raise FailedError(
            f"not uploaded: {target} is not complete. The upload Job fills it, and its log says how far it is; where "
            "the Job is gone, `pulumi up --refresh` makes it again"
        )
    say(f"{target} is complete")


def _container(target: str) -> tuple[Any, str]:
    """A client of the container, and the path inside it. Signs in the way the streamer of vLLM does."""
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    container, _, path = target.removeprefix("az://").partition("/")
    if text := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        service = BlobServiceClient.from_connection_string(text)
    else:
        account = f"https://{os.environ['AZURE_STORAGE_ACCOUNT_NAME']}.blob.core.windows.net"
        service = BlobServiceClient(account, DefaultAzureCredential())
    return service.get_container_client(container), path.rstrip("/") + "/"


def _blobs(container: Any, prefix: str) -> dict[str, tuple[int, str]]:
    """Path -> size and digest of what is committed."""
    with _blob_words():
        found = list(container.list_blobs(name_starts_with=prefix, include=["metadata"]))
    return {blob.name.removeprefix(prefix): (blob.size, (blob.metadata or {}).get("digest", "")) for blob in found}


def _is_uploaded(container: Any, prefix: str, present: dict[str, tuple[int, str]], exclude: list[str] | None) -> bool:
    if MARKER not in present:
        return False
    with _blob_words():
        manifest = json.loads(container.download_blob(prefix + MARKER).readall())
    files = [File(**file) for file in manifest["files"]]
    whole = all(present.get(file.path) == (file.size, file.digest) for file in files)
    return whole and exclude in (None, manifest["exclude"])


def _in_blob_words(call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with _blob_words():
        call(*args, **options)


@contextmanager
def _blob_words() -> Generator[None]:
    """Turns what the Azure SDK raises, after attempts of its own, into AgainError and FailedError."""
    from azure.core import exceptions

    try:
        yield
    except exceptions.AzureError as error:
        status = getattr(error, "status_code", None)
        code = getattr(error, "error_code", None) or type(error).__name__
        if isinstance(error, exceptions.ClientAuthenticationError) or status in (401, 403):
            why = f"the storage account does not let this pod in ({status or 'sign-in'}, {code})"
            # A grant that was made a minute ago is not known everywhere yet.
            if time.monotonic() - BEGAN < GRANT:
                raise AgainError(f"{why}, maybe not yet", 15) from None
            raise FailedError(
                f"no access: {why}. Its service account needs the federated credential and the role of this stack, and "
                "the account's network rules must allow the cluster: docs/weights.md"
            ) from None
        if status == 404:
            raise FailedError(f"missing: the storage account answers {code} (404)") from None
        raise AgainError(f"the storage account answers {status or 'nothing'} ({code})") from None


# Both.


class Progress:
    """How much has arrived, told every ten seconds."""

    def __init__(self, files: list[File], arrived: int) -> None:
        self.total, self._arrived = sum(file.size for file in files), arrived
        self._lock, self._told, self._at = threading.Lock(), time.monotonic(), arrived
        say(f"{len(files)} files, {self.total / 1e9:,.1f} GB, of which {arrived / 1e9:,.1f} GB are there already")

    def add(self, size: int) -> None:
        """`size` bytes have arrived; negative: they have to come again."""
        with self._lock:
            self._arrived += size
            seconds = time.monotonic() - self._told
            if seconds >= 10:
                rate = (self._arrived - self._at) / seconds
                say(f"{self._arrived / 1e9:,.1f} of {self.total / 1e9:,.1f} GB, {rate / 1e6:,.0f} MB/s")
                self._told, self._at = time.monotonic(), self._arrived


def _fetch(hub: Hub, commit: str, file: File, sink: Sink, patience: Patience, progress: Progress) -> None:
    """All of a file into a sink, from where that stands, checked before it gets its name."""
    attempt = wrong = 0
    while True:
        try:
            if sink.position < file.size:
                for place, data in hub.read(commit, file, sink.position):
                    patience.check()
                    if place != sink.position:
                        progress.add(-sink.position)
                        sink.restart()
                    if place != sink.position or place + len(data) > file.size:
                        raise AgainError(f"{file.path}: other bytes came than were asked for")
                    sink.write(data)
                    progress.add(len(data))
                    attempt = 0
            if sink.position < file.size:
                raise AgainError(f"{file.path}: ended after {sink.position:,} of {file.size:,} bytes")
            if sink.digest() == file.digest:
                sink.finish()
                return
            wrong += 1
            progress.add(-sink.position)
            sink.restart()
            if wrong == WRONG_MAX:
                raise FailedError(
                    f"wrong hash: {file.path} came {WRONG_MAX} times with other bytes than Hugging Face's list "
                    "says. Nothing of it was kept; see what changes files on the way here, a proxy for example"
                )
            raise AgainError(f"{file.path}: wrong hash")
        except AgainError as again:
            patience.pause(attempt, again)
            attempt += 1


def _patiently(patience: Patience, call: Callable[[], Any]) -> Any:
    attempt = 0
    while True:
        try:
            return call()
        except AgainError as again:
            patience.pause(attempt, again)
            attempt += 1


def _all_of(files: list[File], one: Callable[[File], None], patience: Patience) -> None:
    """Every file, several at once, the largest first; the first failure stops all."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        running = [pool.submit(one, file) for file in sorted(files, key=lambda file: -file.size)]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        failed = [error for future in done if (error := future.exception()) is not None]
        if failed:
            patience.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise failed[0]


def _manifest(model: str, commit: str, exclude: list[str], files: list[File]) -> str:
    listed = [asdict(file) for file in files]
    return json.dumps({"model": model, "commit": commit, "exclude": exclude, "files": listed}, indent=1)


def main(words: list[str]) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(description="Weights for vLLM, whole and checked.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("download", "upload"):
        command = commands.add_parser(name)
        command.add_argument("model")
        command.add_argument("--revision", required=True)
        command.add_argument("--to", required=True)
        command.add_argument("--exclude", action="append", default=[])
        command.add_argument("--give-up-after", type=float, required=True)
    command = commands.add_parser("ready")
    command.add_argument("to")
    command.add_argument("--give-up-after", type=float, required=True)
    given = parser.parse_args(words)
    patience = Patience(given.give_up_after)
    try:
        if given.command == "download":
            download(given.model, given.revision, Path(given.to), given.exclude, patience)
        elif given.command == "upload":
            upload(given.model, given.revision, given.to, given.exclude, patience)
        else:
            ready(given.to, patience)
    except FailedError as failed:
        say(f"weights: {failed}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
